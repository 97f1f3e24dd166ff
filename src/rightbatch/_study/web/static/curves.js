// The charts along the training: the selected metric, noise, training and test loss, stability.

import { axesOf, bandsOf, curvesOf, endsOf, tableOf } from './bands.js'
import { Chart } from './chart.js'
import { at, set } from './dom.js'
import { drawn, number, rough } from './text.js'

const SEEDS = 'Line: median of the seeds; band: minimum to maximum.'
const SHARPNESS = 'sharpness_times_rate'

let charts

export function startCurves() {
  charts = {
    curve: new Chart(at('curve'), chosen),
    scale: new Chart(at('noise-scale'), noiseScale),
    loss: new Chart(at('loss-spread'), lossSpread),
    gradient: new Chart(at('gradient-spread'), gradientSpread),
    losses: new Chart(at('losses'), losses),
    sharpness: new Chart(at('sharpness'), sharpness),
  }
}

export function showCurves(now) {
  charts.curve.show(now)
  const noise = [charts.scale, charts.loss, charts.gradient].map(chart => chart.show(now))
  at('noise').hidden = !noise.includes(true)
  const hasLosses = charts.losses.show(now)
  at('gap').hidden = !hasLosses && at('gap-size').hidden
  set('gap-lead', now.study.gap_sentence)
  at('stability').hidden = !charts.sharpness.show(now)
}

// A chart of one metric; `lines` are horizontal ones, each {value, text}.
function along(now, metric, { title, isLog, name = metric, lines = [], scale, said = '' }) {
  if (!now.study.metrics.includes(metric)) return null
  const { view } = now
  return {
    title,
    metrics: [metric],
    key: [metric, view.along, view.x, isLog, view.hide, lines.map(line => line.value)].join('|'),
    build: document => {
      const curves = curvesOf(document, now, scale)
      if (!curves.length) return { nothing: nothingOf(document, now, metric) }
      if (isLog && !curves.some(curve => curve.middle.some(value => value > 0)))
        return { nothing: `No value of ${metric} is above zero, which a logarithmic scale requires.` }
      const axes = axesOf(now, { isLog })
      return {
        traces: bandsOf(curves, now, { isLog }),
        layout: {
          ...axes,
          ...across(lines, now, isLog),
          uirevision: `${metric} ${axes.uirevision}`,
        },
        caption: [
          `${name} against ${view.along}.`,
          said,
          endsOf(curves),
          ...lines.map(({ value, text }) => `Dashed: ${text}, ${number(value)}.`),
          metric === now.metric && curves.some(({ runs }) => runs > 1) ? SEEDS : '',
        ]
          .filter(Boolean)
          .join(' '),
        ...tableOf(curves, view.along),
      }
    },
  }
}

function nothingOf(document, { view }, metric) {
  const has = document.sizes.length > 0
  return has && view.hide.length
    ? 'All batch sizes with this metric are hidden.'
    : has
      ? `Nothing to draw: ${view.along} were not recorded with ${metric}.`
      : `No value of ${metric} yet.`
}

function across(lines, { theme }, isLog) {
  const drawable = lines.filter(({ value }) => !isLog || value > 0)
  return {
    shapes: drawable.map(({ value }) => ({
      type: 'line',
      xref: 'paper',
      x0: 0,
      x1: 1,
      y0: value,
      y1: value,
      line: { color: theme.ink, width: 1, dash: 'dash' },
      layer: 'above',
    })),
    annotations: drawable.map(({ value, text }) => ({
      text: drawn(text),
      xref: 'paper',
      x: 1,
      xanchor: 'right',
      y: isLog ? Math.log10(value) : value,
      yanchor: 'bottom',
      showarrow: false,
      font: { color: theme.ink, size: 11 },
    })),
  }
}

function chosen(now) {
  const { metric, view } = now
  if (!metric)
    return { title: '', key: '', build: () => ({ nothing: 'No metric was logged yet.' }) }
  const { target } = now.study
  const lines = target?.metric === metric ? [{ value: target.value, text: 'target' }] : []
  return along(now, metric, { title: metric, isLog: view.y === 'log', lines })
}

function noiseScale(now) {
  const critical = now.study.critical?.batch_size
  const lines = critical
    ? [{ value: critical, text: 'critical batch size, from steps to target' }]
    : []
  return along(now, 'noise_scale', { title: 'Noise scale, in examples', isLog: true, lines })
}

function lossSpread(now) {
  return along(now, 'loss_spread', {
    title: 'Spread of the loss between steps',
    isLog: true,
    said: sizesSaid(now, 'loss_spread'),
  })
}

function gradientSpread(now) {
  return along(now, 'gradient_variance', {
    title: 'Spread of the gradient, tr(Σ) / batch size',
    name: 'gradient_variance / batch size',
    isLog: true,
    scale: size => (size ? 1 / size : null),
    said: sizesSaid(now, 'gradient_variance_of_batch'),
  })
}

// The median over the run, for the smallest and the largest size.
function sizesSaid({ study, view }, field) {
  const sizes = study.sizes.filter(
    size => size[field] && size.batch_size !== null && !view.hide.includes(String(size.batch_size)),
  )
  if (sizes.length < 2) return ''
  const [first, last] = [sizes[0], sizes.at(-1)]
  const said = size => `${rough(size[field].middle)} at batch ${size.batch_size}`
  return `Over the run: ${said(first)}, ${said(last)}.`
}

// Training dotted, test solid.
function losses(now) {
  const { view, study } = now
  if (!['loss', 'evaluation_loss'].every(metric => study.metrics.includes(metric))) return null
  const isLog = view.y === 'log'
  return {
    title: 'Loss in training (dotted) and evaluation (solid)',
    metrics: ['loss', 'evaluation_loss'],
    key: ['losses', view.along, view.x, isLog, view.hide].join('|'),
    build: (training, evaluation) => {
      const [trained, evaluated] = [training, evaluation].map(document => curvesOf(document, now))
      if (!evaluated.length) return { nothing: nothingOf(evaluation, now, 'evaluation_loss') }
      const lines = bandsOf(trained, now, { isLog, dash: 'dot', prefix: 'in training' })
      const named = (curves, kind) =>
        curves.map(curve => ({ ...curve, name: `${curve.name}, ${kind}` }))
      return {
        traces: [
          // Bands only for the test: two bands would hide each other.
          ...lines.filter(trace => trace.fill !== 'toself'),
          ...bandsOf(evaluated, now, { isLog, prefix: 'in evaluation' }),
        ],
        layout: axesOf(now, { isLog }),
        caption: `loss and evaluation_loss against ${view.along}. Evaluation: ${endsOf(evaluated)}`,
        ...tableOf([...named(trained, 'training'), ...named(evaluated, 'evaluation')], view.along),
      }
    },
  }
}

function sharpness(now) {
  return along(now, SHARPNESS, {
    title: 'Largest eigenvalue of the loss × learning rate',
    isLog: false,
    lines: [{ value: 2, text: 'edge of stability' }],
  })
}
