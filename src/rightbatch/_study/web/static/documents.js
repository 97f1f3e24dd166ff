// The documents of the study: from the server, or embedded in this file (a report).

import { ask } from './ask.js'
import { at } from './dom.js'

const SECONDS = 30 // for an answer: a large store takes its time

// The documents of a server. Curves are cached until the study changes.
class Served {
  constructor() {
    this.isFixed = false
    this.tag = null
    this.kept = new Map()
  }

  // The study, or null if it has not changed.
  async study() {
    const answer = await ask('/api/study', { tag: this.tag, seconds: SECONDS })
    if (answer.status === 304) return null
    const study = await answer.json()
    this.tag = answer.headers.get('ETag')
    return study
  }

  forget() {
    this.tag = null
  }

  // A metric's curves, if they are cached and current.
  now(metric) {
    const kept = this.kept.get(metric)
    return kept?.tag === this.tag ? (kept.content ?? null) : null
  }

  async curves(metric) {
    const { tag } = this
    let kept = this.kept.get(metric)
    if (kept?.tag !== tag) {
      kept = { tag, content: null }
      kept.coming = askJson(`/api/curves?metric=${encodeURIComponent(metric)}`).then(
        curves => (kept.content = curves),
      )
      kept.coming.catch(() => this.kept.get(metric) === kept && this.kept.delete(metric))
      this.kept.set(metric, kept)
    }
    return kept.content ?? kept.coming
  }

  async run(id) {
    return askJson(`/api/runs/${encodeURIComponent(id)}`)
  }

  plotly() {
    return new Promise((resolve, reject) => {
      const script = document.createElement('script')
      script.src = at('plotly').href
      script.onload = () => resolve(window.Plotly)
      script.onerror = () => reject(new Error('the chart library could not be loaded'))
      document.head.append(script)
    })
  }
}

// The documents embedded in a report, compressed.
class Embedded {
  constructor() {
    this.isFixed = true
    this.tag = 'report'
    this.all = null
  }

  async study() {
    if (this.all) return null
    this.all = JSON.parse(await unpacked('packed-documents'))
    return this.all.study
  }

  forget() {}

  now(metric) {
    return this.all.curves[metric] ?? { sizes: [] }
  }

  async curves(metric) {
    return this.now(metric)
  }

  async run(id) {
    const run = this.all.runs[id]
    if (!run) throw new Error('This run is not in the report.')
    return run
  }

  async plotly() {
    const script = document.createElement('script')
    script.textContent = await unpacked('packed-plotly')
    document.head.append(script)
    return window.Plotly
  }
}

async function askJson(path) {
  return (await ask(path, { seconds: SECONDS })).json()
}

async function unpacked(id) {
  if (!window.DecompressionStream)
    throw new Error('This browser is too old for the report; use one of 2023 or newer.')
  const packed = Uint8Array.from(atob(at(id).textContent), letter => letter.charCodeAt(0))
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))
  return new Response(stream).text()
}

export const documents = at('packed-documents') ? new Embedded() : new Served()
