// The charts against batch size: cost to the target, throughput, memory, learning rate, gap.

import { Chart } from './chart.js'
import { at, set } from './dom.js'
import { memory } from './memory.js'
import { field, lineOf } from './points.js'
import { reached } from './target.js'
import { joined, number, range, rough, sentence } from './text.js'

let charts

export function startSizes() {
  charts = {
    steps: new Chart(at('target-steps'), now => reached(now, 'steps', 1)),
    examples: new Chart(at('target-examples'), now => reached(now, 'examples', 2)),
    seconds: new Chart(at('target-seconds'), now => reached(now, 'seconds', null)),
    throughput: new Chart(at('throughput'), throughput),
    memory: new Chart(at('memory'), memory),
    rate: new Chart(at('rate'), rate),
    gap: new Chart(at('gap-size'), gap),
  }
}

export function showSizes(now) {
  const { target, critical_reason: reason } = now.study
  const isReached = ['steps', 'examples', 'seconds']
    .map(axis => charts[axis].show(now))
    .includes(true)
  set('to-target-note', target ? `${target.metric} = ${number(target.value)}` : '')
  set('to-target-lead', sentence(reason))
  at('to-target').hidden = !isReached && !reason
  const costs = ['throughput', 'memory', 'rate'].map(name => charts[name].show(now))
  at('throughput').closest('section').hidden = !costs.includes(true)
  charts.gap.show(now)
}

function throughput(now) {
  const format = value => `${rough(value)} examples/s`
  return field(now, 'examples_per_second', {
    title: 'Throughput, examples per second',
    format,
    extra: points => {
      const [first, last] = [points[0], points.at(-1)]
      const most = Math.max(...points.map(({ band }) => band.middle))
      const grown = size => (first.band.middle * size) / first.size
      // The line is cut at the edge of the plot.
      const until = Math.min(last.size, (2 * most * first.size) / first.band.middle)
      const ends = [first.size, until].map(size => [size, grown(size)])
      const line = lineOf(ends, now.theme)
      return { below: [{ ...line, line: { ...line.line, dash: 'dot', width: 1 } }] }
    },
    said: points => {
      const best = points.reduce((one, other) =>
        other.band.middle > one.band.middle ? other : one,
      )
      const grown = best.band.middle / points[0].band.middle
      return (
        `Highest: batch ${best.size} with ${format(best.band.middle)}, ` +
        `${rough(grown)} times batch ${points[0].size}. Dotted: proportional growth.`
      )
    },
  })
}

function rate(now) {
  return field(now, 'learning_rate', {
    title: 'Learning rate',
    format: number,
    said: points => {
      const [first, last] = [points[0], points.at(-1)]
      const told = ({ size, band }) => `${number(band.middle)} at batch ${size}`
      return first === last ? `${told(first)}.` : `From ${told(first)} to ${told(last)}.`
    },
  })
}

function gap(now) {
  return field(now, 'gap', {
    title: 'Gap at the end, by batch size',
    format: number,
    yaxis: { type: 'linear', rangemode: 'tozero', zeroline: true, zerolinecolor: now.theme.soft },
    said: points => {
      const [first, last] = [points[0], points.at(-1)]
      const one = point => `${range(point.band)} at batch ${point.size}`
      const told = joined([...new Set([first, last])].map(one))
      return `Evaluation minus training: ${told}. Bars: minimum to maximum over the seeds.`
    },
  })
}
