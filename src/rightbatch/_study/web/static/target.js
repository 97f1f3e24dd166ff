// Steps, examples and seconds to the target against batch size, with the curve that fits them.

import { faded } from './colors.js'
import { lineOf, shown, sizeAxis, sizesOf, traceOf } from './points.js'
import { about, count, interval, isNumber, joined, plural, range, rough, seconds } from './text.js'

export function reached(now, axis, column) {
  const { target, critical } = now.study
  const sizes = shown(now)
  if (!target || !sizes.some(size => size.reached)) return null
  const format = axis === 'seconds' ? seconds : rough
  return {
    title: { steps: 'Steps', examples: 'Examples', seconds: 'Seconds' }[axis],
    key: `reached ${axis} ${now.view.hide}`,
    build: () => {
      const points = sizes
        .filter(size => isNumber(size.reached?.[axis]?.middle))
        .map(({ batch_size: size, reached: { of, count: some, ...bands } }) => ({
          size,
          band: bands[axis],
          isHollow: some < of,
          text: `<br>${some} of ${plural(of, 'run')}`,
        }))
      if (!points.length) return { nothing: `No run has reached ${target.metric} yet.` }
      const fit = column === null ? null : critical
      const traces = [traceOf(points, now, format)]
      if (fit)
        traces.unshift(
          lineOf(
            fit.curve.map(row => [row[0], row[column]]),
            now.theme,
          ),
        )
      return {
        traces,
        layout: {
          xaxis: sizeAxis(sizesOf(points)),
          yaxis: { type: 'log' },
          ...(fit ? fitted(fit, axis, now.theme) : {}),
        },
        caption: reachedSaid(points, sizes, axis, format, fit),
        head: ['Batch size', `Median ${axis}`, 'Minimum', 'Maximum', 'Runs that reached it'],
        rows: sizes.map(({ batch_size: size, reached: some }) => [
          String(size),
          format(some?.[axis]?.middle),
          format(some?.[axis]?.low),
          format(some?.[axis]?.high),
          some ? `${count(some.count)} of ${count(some.of)}` : '–',
        ]),
      }
    },
  }
}

function fitted(critical, axis, theme) {
  const least = axis === 'steps' ? critical.steps_min : critical.examples_min
  const shapes = [
    {
      type: 'rect',
      yref: 'paper',
      y0: 0,
      y1: 1,
      x0: critical.low ?? 1e-3, // outside the plot if there is no bound
      x1: critical.high ?? 1e9,
      fillcolor: faded(theme.accent, 0.09),
      line: { width: 0 },
      layer: 'below',
    },
    {
      type: 'line',
      yref: 'paper',
      y0: 0,
      y1: 1,
      x0: critical.batch_size,
      x1: critical.batch_size,
      line: { color: theme.accent, width: 1.25 },
      layer: 'below',
    },
    {
      type: 'line',
      xref: 'paper',
      x0: 0,
      x1: 1,
      y0: least,
      y1: least,
      line: { color: theme.soft, width: 1, dash: 'dot' },
      layer: 'below',
    },
  ].filter(({ x0, x1, y0 }) => [x0, x1, y0].every(isNumber))
  const annotations = [
    {
      text: `critical ${about(critical.batch_size)}`,
      x: Math.log10(critical.batch_size),
      yref: 'paper',
      y: 1,
      yanchor: 'top',
      xanchor: 'left',
      font: { color: theme.accent, size: 11 },
      showarrow: false,
    },
    {
      text: `at least ${rough(least)}`,
      xref: 'paper',
      x: axis === 'steps' ? 0 : 1,
      xanchor: axis === 'steps' ? 'left' : 'right',
      y: Math.log10(least),
      yanchor: 'top',
      font: { size: 11 },
      showarrow: false,
    },
  ]
  return { shapes, annotations }
}

function shaded({ low, high }) {
  const text = interval(low, high)
  return text && `Shaded: the interval of the critical batch size, ${text}.`
}

function reachedSaid(points, sizes, axis, format, fit) {
  const best = points.reduce((one, other) => (other.band.middle < one.band.middle ? other : one))
  const late = sizes.filter(({ reached: some }) => some && some.count === 0)
  const some = points.filter(({ isHollow }) => isHollow)
  const names = list => joined(list.map(one => String(one.batch_size ?? one.size)))
  return [
    `Fewest ${axis}: batch ${best.size} with ${range(best.band, format)}.`,
    some.length ? `Hollow: not every run reached it (${names(some)}).` : '',
    late.length ? `Not reached at ${names(late)}.` : '',
    fit ? `Curve: the fit to ${plural(fit.sizes, 'size')}. ${shaded(fit)}` : '',
  ]
    .filter(Boolean)
    .join(' ')
}
