// Curves along the training: a colour per batch size, a band over the seeds, a line for the median.

import { colorOf, faded } from './colors.js'
import { count, drawn, number, plural, rough, sizeName } from './text.js'

const FEW = 15 // points; curves with fewer have markers
const PARTS = [0, 0.25, 0.5, 0.75, 1] // positions of a curve in the table

// The visible curves of a document, each {size, name, runs, x, middle, low, high}.
// `scale(size)` is a factor of the values.
export function curvesOf(document, { view }, scale = () => 1) {
  const curves = []
  for (const { batch_size: size, runs, name, by } of document.sizes) {
    if (view.hide.includes(String(size))) continue
    const band = by[view.along]
    const factor = scale(size)
    if (!band || factor === null) continue
    const kept = band.x.map((x, place) => place).filter(isShown(band, view))
    if (!kept.length) continue
    const pick = values =>
      kept.map(place => (values[place] === null ? null : values[place] * factor))
    curves.push({
      size,
      runs,
      name: name ?? sizeName(size),
      x: kept.map(place => band.x[place]),
      middle: pick(band.middle),
      low: pick(band.low),
      high: pick(band.high),
    })
  }
  return curves
}

function isShown({ x, middle }, view) {
  return place =>
    x[place] !== null && middle[place] !== null && (view.x === 'linear' || x[place] > 0)
}

// Their Plotly traces.
export function bandsOf(curves, now, { isLog = false, dash = 'solid', prefix = '' } = {}) {
  const bands = []
  const lines = []
  for (const curve of curves) {
    const color = colorOf(now.colors, curve.size, curve.name)
    if (curve.runs > 1) bands.push(bandOf(curve, color, isLog))
    lines.push({
      type: 'scatter',
      mode: curve.x.length <= FEW ? 'lines+markers' : 'lines',
      x: curve.x,
      y: curve.middle,
      name: drawn(curve.name),
      line: { color, width: 2, dash },
      marker: { color, size: 5 },
      customdata: curve.runs > 1 ? curve.low.map((low, place) => [low, curve.high[place]]) : null,
      hovertemplate: hover(curve, now.view.along, prefix),
    })
  }
  return [...bands, ...lines]
}

// A logarithmic scale cannot show zero.
function bandOf({ x, low, high, middle }, color, isLog) {
  const bottom = isLog ? low.map((value, place) => (value > 0 ? value : middle[place])) : low
  return {
    type: 'scatter',
    mode: 'lines',
    x: [...x, ...x.toReversed()],
    y: [...high, ...bottom.toReversed()],
    fill: 'toself',
    fillcolor: faded(color, 0.14),
    line: { width: 0, color },
    hoverinfo: 'skip',
  }
}

// A Plotly hover template, filled in at the pointer.
function hover({ name, runs }, axis, prefix) {
  const seeds =
    runs > 1 ? `<br>%{customdata[0]:.4~g} to %{customdata[1]:.4~g}, ${plural(runs, 'run')}` : ''
  const head = `<b>${template(name)}</b> ${prefix}`
  return `${head}<br>%{y:.4~g} at %{x:,.6~g} ${axis}${seeds}<extra></extra>`
}

// Escapes a name, so that Plotly fills nothing in.
function template(text) {
  return drawn(text).replaceAll('%{', '%&#123;')
}

// The last values, from the lowest to the highest.
export function endsOf(curves) {
  if (!curves.length) return ''
  const last = curve => curve.middle.at(-1)
  const sorted = [...curves].sort((one, other) => last(one) - last(other))
  const told = curve => `${curve.name} with ${number(last(curve))}`
  if (sorted.length === 1) return `At the end: ${told(sorted[0])}.`
  return `At the end the lowest is ${told(sorted[0])}, the highest ${told(sorted.at(-1))}.`
}

export function tableOf(curves, axis) {
  const head = [
    'Curve',
    'Runs',
    'Start',
    'A quarter',
    'Half',
    'Three quarters',
    'End',
    'Seeds at the end',
  ]
  const rows = curves.map(({ name, runs, x, middle, low, high }) => [
    name,
    count(runs),
    ...PARTS.map(part => {
      const place = Math.round(part * (x.length - 1))
      return `${number(middle[place])} at ${axis === 'seconds' ? rough(x[place]) : count(x[place])}`
    }),
    runs > 1 ? `${number(low.at(-1))} to ${number(high.at(-1))}` : '–',
  ])
  return { head, rows }
}

export function axesOf(now, { isLog = false, title = '' } = {}) {
  return {
    xaxis: { title: now.view.along, type: now.view.x, rangemode: 'nonnegative' },
    yaxis: { title, type: isLog ? 'log' : 'linear' },
    uirevision: `${now.view.along} ${now.view.x} ${isLog}`,
  }
}
