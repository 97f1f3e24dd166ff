// A chart: a plot by Plotly, a caption, and the data as a table.
//
// It is drawn when it comes near the screen, and again when its data have changed.

import { documents } from './documents.js'
import { make, write } from './dom.js'
import { drawn } from './text.js'

const NEAR = '400px' // around the screen
const CONFIG = { displayModeBar: false, responsive: true, doubleClick: 'reset', showTips: false }

let loading = null
const waiting = new Set()
let isDrawing = false
const charts = new Map() // by the figure's element
const watcher = new IntersectionObserver(
  entries => {
    for (const { target, isIntersecting } of entries) charts.get(target).see(isIntersecting)
  },
  { rootMargin: NEAR },
)
window.addEventListener('beforeprint', () => {
  for (const chart of charts.values()) chart.see(true)
})

// Plotly is a hundred times as large as the rest of the page: it loads after the first frame with
// text.
function plotly() {
  loading ??= new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve))).then(() =>
    documents.plotly(),
  )
  return loading
}

// Charts are drawn one by one from the top, and the page can be used in between.
async function enqueue(chart) {
  waiting.add(chart)
  if (isDrawing) return
  isDrawing = true
  let library = null
  let failure = null
  try {
    library = await plotly()
  } catch (error) {
    failure = error
    loading = null // retry at the next change
  }
  while (waiting.size) {
    const [first] = [...waiting].sort((one, other) => before(one.place, other.place))
    waiting.delete(first)
    try {
      if (failure) throw failure
      await first.draw(library)
    } catch (error) {
      first.fail(error)
    }
    if (waiting.size) await new Promise(resolve => setTimeout(resolve))
  }
  isDrawing = false
}

function before(one, other) {
  return one.compareDocumentPosition(other) & Node.DOCUMENT_POSITION_FOLLOWING ? -1 : 1
}

export class Chart {
  // `wanted(now)` describes the chart: {title, key, metrics, build(...curves of metrics)}, or null.
  // `build` returns {traces, layout, caption, head, rows}, or {nothing: reason}.
  constructor(place, wanted) {
    this.place = place
    this.wanted = wanted
    this.title = make('h3')
    this.zoomed = make('button', { type: 'button', class: 'quiet' }, 'Reset zoom')
    this.zoomed.hidden = true
    this.picture = make('div', { class: 'plot', role: 'img' })
    this.nothing = make('p', { class: 'nothing' })
    this.caption = make('figcaption')
    this.caption.id = `${place.id}-caption`
    this.table = make('div', { class: 'scroll', role: 'region', tabindex: '0' })
    this.data = make('details', {}, make('summary', {}, 'Data as a table'), this.table)
    this.picture.setAttribute('aria-labelledby', this.caption.id)
    place.append(
      make('div', { class: 'figure-head' }, this.title, this.zoomed),
      this.picture,
      this.nothing,
      this.caption,
      this.data,
    )
    place.hidden = true
    this.data.addEventListener('toggle', () => this.tabulate())
    this.zoomed.addEventListener('click', () => this.unzoom())
    charts.set(place, this)
    watcher.observe(place)
  }

  // Returns whether there is a chart to show.
  show(now) {
    this.now = now
    const wanted = this.wanted(now)
    this.place.hidden = !wanted
    if (!wanted) {
      this.key = null
      return false
    }
    write(this.title, wanted.title)
    this.table.setAttribute('aria-label', `${wanted.title}: data`)
    this.job = wanted
    this.update()
    return true
  }

  see(isNear) {
    this.isNear = isNear
    if (isNear) this.update()
  }

  async update() {
    const { job } = this
    if (!job) return
    const metrics = job.metrics ?? []
    if (metrics.length && !this.isNear) return
    const key = `${documents.tag} ${this.now.theme.name} ${job.key}`
    if (this.key !== key) {
      this.key = key
      try {
        let curves = metrics.map(metric => documents.now(metric))
        if (curves.includes(null)) {
          curves = await Promise.all(metrics.map(metric => documents.curves(metric)))
          if (this.key !== key) return
        }
        this.tell(job.build(...curves))
      } catch (error) {
        if (this.key === key) this.key = null // and the next change tries again
        if (!this.drawing) this.tell({ nothing: `The data could not be loaded: ${error.message}` })
        return
      }
    }
    if (this.isNear && this.drawing && this.drawnKey !== this.key) enqueue(this)
  }

  tell(drawing) {
    this.drawing = drawing.nothing === undefined ? drawing : null
    this.picture.hidden = this.data.hidden = this.caption.hidden = !this.drawing
    this.nothing.hidden = Boolean(this.drawing)
    write(this.nothing, drawing.nothing ?? '')
    write(this.caption, drawing.caption ?? '')
    this.tabulate()
  }

  tabulate() {
    if (!this.data.open || !this.drawing) return
    const { head, rows } = this.drawing
    const cells = (tag, texts) => texts.map(text => make(tag, {}, text))
    this.table.replaceChildren(
      make(
        'table',
        {},
        make('thead', {}, make('tr', {}, ...cells('th', head))),
        make('tbody', {}, ...rows.map(row => make('tr', {}, ...cells('td', row)))),
      ),
    )
  }

  fail(error) {
    this.picture.hidden = true
    this.nothing.hidden = false
    write(this.nothing, `The chart could not be drawn: ${error.message}. The data are in the table.`)
  }

  async draw(library) {
    if (!this.drawing || this.drawnKey === this.key || this.place.hidden) return
    this.drawnKey = this.key
    const { traces, layout } = this.drawing
    this.uirevision = layout.uirevision ?? ''
    const isNew = !this.picture.classList.contains('js-plotly-plot')
    await library.react(this.picture, traces, laidOut(layout, traces, this.now.theme), CONFIG)
    if (isNew) this.picture.on('plotly_relayout', change => this.noticeZoom(change))
    this.noticeZoom({})
    this.picture.dataset.drawn = String(Number(this.picture.dataset.drawn ?? 0) + 1)
  }

  noticeZoom() {
    const { xaxis, yaxis } = this.picture.layout ?? {}
    this.zoomed.hidden = !(xaxis?.autorange === false || yaxis?.autorange === false)
  }

  async unzoom() {
    const library = await plotly()
    await library.relayout(this.picture, { 'xaxis.autorange': true, 'yaxis.autorange': true })
    this.picture.closest('figure').querySelector('summary').focus()
  }
}

const NARROW = window.matchMedia('(max-width: 560px), (pointer: coarse)')

function laidOut({ xaxis = {}, yaxis = {}, ...layout }, traces, { font, panel, edge, ink, soft }) {
  const axis = ({ title, ...more }, letter) => ({
    title: { text: drawn(title ?? ''), standoff: 8, font: { color: soft, size: 12 } },
    gridcolor: edge,
    linecolor: edge,
    tickcolor: edge,
    zeroline: false,
    separatethousands: true,
    ...(more.type === 'log' && !more.tickvals ? logTicks(traces, letter) : {}),
    ...more,
  })
  return {
    font: { family: font, size: 12, color: soft },
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    margin: { l: 50, r: 10, t: 10, b: 42 }, // enough for all ticks; automatic margins are slow
    showlegend: false,
    hovermode: 'closest',
    hoverlabel: { bgcolor: panel, bordercolor: edge, font: { color: ink }, align: 'left' },
    dragmode: NARROW.matches ? false : 'zoom', // touch scrolls
    ...layout,
    xaxis: axis(xaxis, 'x'),
    yaxis: axis(yaxis, 'y'),
  }
}

// Plotly's own ticks of a logarithmic axis overlap, or are single digits.
function logTicks(traces, letter) {
  let [least, most] = [Infinity, 0]
  for (const trace of traces) {
    for (const value of trace[letter]) {
      if (!(value > 0)) continue
      if (value < least) least = value
      if (value > most) most = value
    }
  }
  const decades = Math.log10(most / least)
  if (!(decades > 0)) return {}
  const dtick = decades < 0.7 ? 'D1' : decades < 2.3 ? 'D2' : Math.ceil(decades / 6)
  return { dtick, tickformat: most >= 10_000 ? '~s' : '~g' }
}
