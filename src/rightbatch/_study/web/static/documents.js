// Where the documents come from: a server that is asked, or the file that this page is.

import { ask } from './ask.js'
import { at } from './dom.js'

// What a server has. Curves are kept until the study changes.
class Served {
  constructor() {
    this.isFixed = false
    this.tag = null
    this.kept = new Map()
  }

  // The study, or null where it is as it was.
  async study() {
    const answer = await ask('/api/study', this.tag)
    if (!answer) return null
    this.tag = answer.tag
    return answer.content
  }

  forget() {
    this.tag = null
  }

  // What is known of a metric's curves now, whether or not it is the newest.
  now(metric) {
    const kept = this.kept.get(metric)
    return kept?.tag === this.tag ? (kept.content ?? null) : null
  }

  async curves(metric) {
    const { tag } = this
    let kept = this.kept.get(metric)
    if (kept?.tag !== tag) {
      kept = { tag, content: null }
      kept.coming = ask(`/api/curves?metric=${encodeURIComponent(metric)}`).then(
        answer => (kept.content = answer.content),
      )
      kept.coming.catch(() => this.kept.get(metric) === kept && this.kept.delete(metric))
      this.kept.set(metric, kept)
    }
    return kept.content ?? kept.coming
  }

  async run(id) {
    return (await ask(`/api/runs/${encodeURIComponent(id)}`)).content
  }

  plotly() {
    return new Promise((resolve, reject) => {
      const script = document.createElement('script')
      script.src = at('plotly').href
      script.onload = () => resolve(window.Plotly)
      script.onerror = () => reject(new Error('the script that draws charts did not come'))
      document.head.append(script)
    })
  }
}

// What a report holds, compressed.
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

async function unpacked(id) {
  if (!window.DecompressionStream)
    throw new Error('This browser is too old for the report: one of 2023 or newer opens it.')
  const packed = Uint8Array.from(atob(at(id).textContent), letter => letter.charCodeAt(0))
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))
  return new Response(stream).text()
}

export const documents = at('packed-documents') ? new Embedded() : new Served()
