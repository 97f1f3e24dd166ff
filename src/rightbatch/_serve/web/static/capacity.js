// The calibration: items per second by batch size, and the largest batch that is used.

import { at, draw, set } from './dom.js'
import { capitalized, figure, median } from './text.js'

const HEIGHT = 132
const PLOT = { left: 34, right: 14, top: 20, bottom: 24 }

let shown = ''
let calibration = null

export function startCapacity() {
  new ResizeObserver(() => render()).observe(at('curve'))
}

export function showCapacity(found) {
  const key = JSON.stringify(found)
  if (key === shown) return
  shown = key
  calibration = found
  set(
    'capacity',
    found
      ? `${capitalized(found.text)}.`
      : 'Not measured yet: the first frame or request starts the calibration.',
  )
  at('curve').hidden = !found
  render()
}

function render() {
  const place = at('curve')
  const width = place.clientWidth
  if (!calibration || !width) return place.replaceChildren()
  const points = Object.entries(calibration.seconds)
    .map(([size, taken]) => ({ size: Number(size), rate: Number(size) / median(taken) }))
    .sort((one, other) => one.size - other.size)
  const most = Math.max(...points.map(point => point.rate))
  const inner = width - PLOT.left - PLOT.right
  const x = index =>
    PLOT.left + (points.length > 1 ? (inner * index) / (points.length - 1) : inner / 2)
  const y = rate => PLOT.top + (HEIGHT - PLOT.top - PLOT.bottom) * (1 - rate / (1.05 * most))
  const text = points
    .map(point => `${figure(point.rate)} per second in batches of ${point.size}`)
    .join(', ')
  const svg = draw('svg', {
    width,
    height: HEIGHT,
    viewBox: `0 0 ${width} ${HEIGHT}`,
    role: 'img',
    'aria-label': `Measured: ${text}`,
  })
  svg.append(
    draw('text', { class: 'axis', x: 0, y: 10 }, 'frames/s, by batch size'),
    ...[0, most].flatMap(rate => [
      draw('line', {
        class: 'grid',
        x1: PLOT.left,
        x2: width - PLOT.right,
        y1: y(rate),
        y2: y(rate),
      }),
      draw(
        'text',
        { class: 'axis', x: PLOT.left - 6, y: y(rate) + 3.5, 'text-anchor': 'end' },
        Math.round(rate),
      ),
    ]),
    draw('polyline', {
      class: 'rate',
      points: points.map((point, index) => `${x(index)},${y(point.rate)}`).join(' '),
    }),
    ...points.flatMap((point, index) => {
      const used = point.size <= calibration.largest_batch
      return [
        draw(
          'circle',
          { class: used ? 'used' : 'unused', cx: x(index), cy: y(point.rate), r: 3.5 },
          draw('title', {}, `${figure(point.rate)} per second in batches of ${point.size}`),
        ),
        draw(
          'text',
          { class: 'axis', x: x(index), y: HEIGHT - 6, 'text-anchor': 'middle' },
          point.size,
        ),
      ]
    }),
  )
  place.replaceChildren(svg)
}
