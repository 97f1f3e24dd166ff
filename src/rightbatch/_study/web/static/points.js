// Parts of all charts against batch size: points with error bars, the axis, a line.

import { isNumber, range } from './text.js'

const FEWEST = 0.12 // decades between two labels of an axis

export function shown({ study, view }) {
  return study.sizes.filter(
    ({ batch_size: size }) => size !== null && !view.hide.includes(String(size)),
  )
}

// Bands by size as points with error bars. `points` are {size, band, isHollow, text}.
export function traceOf(points, { colors, theme }, format, more = {}) {
  const colored = points.map(({ size }) => colors.get(size))
  const off = (band, end) => (isNumber(band[end]) ? Math.abs(band[end] - band.middle) : 0)
  return {
    type: 'scatter',
    mode: 'markers',
    x: points.map(({ size }) => size),
    y: points.map(({ band }) => band.middle),
    error_y: {
      type: 'data',
      symmetric: false,
      array: points.map(({ band }) => off(band, 'high')),
      arrayminus: points.map(({ band }) => off(band, 'low')),
      color: theme.soft,
      thickness: 1.25,
      width: 3,
    },
    marker: {
      size: 9,
      color: points.map(({ isHollow }, place) => (isHollow ? theme.panel : colored[place])),
      line: { width: 2, color: colored },
    },
    text: points.map(
      ({ size, band, text = '' }) => `<b>batch ${size}</b><br>${range(band, format)}${text}`,
    ),
    hovertemplate: '%{text}<extra></extra>',
    ...more,
  }
}

// Labels only as many sizes as there is room for.
export function sizeAxis(sizes) {
  const least = sizes.length > 1 ? Math.max(FEWEST, Math.log10(sizes.at(-1) / sizes[0]) / 9) : 0
  let last = -Infinity
  const named = sizes.filter(size => {
    if (Math.log10(size) - last < least - 1e-9) return false
    last = Math.log10(size)
    return true
  })
  const pad = sizes.length > 1 ? 1.25 : 2
  return {
    title: 'batch size',
    type: 'log',
    tickvals: named,
    ticktext: named.map(String),
    range: [Math.log10(sizes[0] / pad), Math.log10(sizes.at(-1) * pad)],
  }
}

export function sizesOf(points) {
  return points.map(({ size }) => size)
}

export function lineOf(places, theme) {
  return {
    type: 'scatter',
    mode: 'lines',
    x: places.map(([x]) => x),
    y: places.map(([, y]) => y),
    line: { color: theme.soft, width: 1.5 },
    hoverinfo: 'skip',
  }
}

// A chart of one field of the sizes; `extra(points)` adds to it.
export function field(
  now,
  name,
  { title, format, yaxis = {}, extra = () => ({}), said, more = [] },
) {
  const sizes = shown(now)
  const points = sizes
    .filter(size => isNumber(size[name]?.middle))
    .map(({ batch_size: size, [name]: band }) => ({ size, band }))
  if (!points.length && !more.length) return null
  return {
    title,
    key: `${name} ${now.view.hide}`,
    build: () => {
      const { traces = [], below = [], ...layout } = extra(points)
      return {
        traces: [...below, traceOf(points, now, format), ...traces],
        layout: {
          xaxis: sizeAxis([...sizesOf(points), ...more].sort((one, other) => one - other)),
          yaxis: { type: 'log', ...yaxis },
          ...layout,
        },
        caption: said(points),
        head: ['Batch size', 'Median', 'Minimum', 'Maximum'],
        rows: points.map(({ size, band }) => [
          String(size),
          format(band.middle),
          format(band.low),
          format(band.high),
        ]),
      }
    },
  }
}
