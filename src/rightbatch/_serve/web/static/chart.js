// The last batches, one column each: number of items above, durations below. Mouse, touch and arrow
// keys select a batch, which is then described in full.

import { draw } from './dom.js'
import { capitalized, clock, milliseconds } from './text.js'

const COLUMN = 4 // minimum width of a batch, in pixels
const LEFT = 34
const RIGHT = 8
const SIZES = { top: 18, height: 96 }
const TIMES = { top: 142, height: 132 }
const HEIGHT = 292
const EMPTY = 120

export class BatchChart {
  constructor(place, showText) {
    this.place = place
    this.showText = showText
    this.batches = []
    this.chosen = null // `at` of the selected batch
    this.marker = draw('rect', { class: 'chosen', y: 0, height: HEIGHT - 14, rx: 2 })
    this.svg = draw('svg', { 'aria-hidden': 'true' })
    place.append(this.svg)
    place.tabIndex = 0
    place.setAttribute('role', 'slider')
    place.setAttribute('aria-label', 'Batches, from the oldest to the newest')
    place.setAttribute('aria-valuemin', '1')
    new ResizeObserver(() => this.render()).observe(place)
    place.addEventListener('pointermove', event => this.choose(this.under(event)))
    place.addEventListener('pointerdown', event => this.choose(this.under(event)))
    place.addEventListener(
      'pointerleave',
      () => document.activeElement !== place && this.choose(null),
    )
    place.addEventListener('blur', () => this.choose(null))
    place.addEventListener('keydown', event => this.key(event))
  }

  show(batches, target, largest) {
    Object.assign(this, { batches, target, largest })
    this.render()
  }

  get visible() {
    const room = Math.floor((this.width - LEFT - RIGHT) / COLUMN)
    return this.batches.slice(-Math.max(room, 1))
  }

  render() {
    this.width = this.place.clientWidth
    if (!this.width) return
    const batches = this.visible
    const height = batches.length ? HEIGHT : EMPTY
    this.svg.setAttribute('width', this.width)
    this.svg.setAttribute('height', height)
    this.svg.setAttribute('viewBox', `0 0 ${this.width} ${height}`)
    this.place.setAttribute('aria-valuemax', String(Math.max(batches.length, 1)))
    if (!batches.length) {
      this.svg.replaceChildren(
        draw(
          'text',
          { x: this.width / 2, y: EMPTY / 2, class: 'nothing', 'text-anchor': 'middle' },
          'No batch has run yet.',
        ),
      )
      this.tell(null)
      return
    }
    this.step = Math.min((this.width - LEFT - RIGHT) / batches.length, 14)
    this.start = this.width - RIGHT - this.step * batches.length
    const bar = Math.max(this.step - (this.step > 6 ? 2 : 1), 1)
    const sizes = scale(SIZES, Math.max(this.largest, ...batches.map(batch => batch.ran_as)))
    const times = scale(TIMES, 1.15 * Math.max(this.target, ...batches.map(slowest)))
    const drawn = batches.flatMap((batch, place) =>
      this.column(batch, this.start + place * this.step, bar, sizes, times),
    )
    this.svg.replaceChildren(
      ...this.axis(sizes, 'items per batch', steps(sizes.most)),
      ...this.axis(times, 'milliseconds', [0, this.target]),
      this.marker,
      ...drawn,
      this.line(times.y(this.target), 'target'),
      ...this.ends(batches),
    )
    this.mark()
  }

  column(batch, x, bar, sizes, times) {
    const late = slowest(batch) > this.target
    const parts = [
      rect('size', x, bar, sizes, batch.size, 0),
      rect('ms', x, bar, times, batch.ms, 0),
    ]
    if (batch.ran_as > batch.size)
      parts.push(rect('padding', x, bar, sizes, batch.ran_as, batch.size))
    const radius = Math.min(Math.max(bar / 2, 1.2), 2.5)
    const [cx, cy] = [x + bar / 2, times.y(slowest(batch))]
    // Late batches differ in shape too, not only in colour.
    const dot = late
      ? draw('path', { class: 'late', d: `M${cx} ${cy - 4.5}l4 7.5h-8z` })
      : draw('circle', { class: 'slowest', cx, cy, r: radius })
    return [...parts, dot]
  }

  axis(of, unit, values) {
    const title = draw('text', { class: 'axis', x: LEFT, y: of.top - 6 }, unit)
    return [
      title,
      ...values.flatMap(value => [
        draw('line', {
          class: 'grid',
          x1: LEFT,
          x2: this.width - RIGHT,
          y1: of.y(value),
          y2: of.y(value),
        }),
        draw(
          'text',
          { class: 'axis', x: LEFT - 6, y: of.y(value) + 3.5, 'text-anchor': 'end' },
          String(Math.round(value)),
        ),
      ]),
    ]
  }

  line(y, kind) {
    return draw('line', { class: kind, x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y })
  }

  ends(batches) {
    const y = HEIGHT - 2
    const last = draw(
      'text',
      { class: 'axis', x: this.width - RIGHT, y, 'text-anchor': 'end' },
      clock(batches.at(-1).at),
    )
    if (this.step * batches.length < 160) return [last]
    return [draw('text', { class: 'axis', x: this.start, y }, clock(batches[0].at)), last]
  }

  under(event) {
    const x = event.clientX - this.place.getBoundingClientRect().left
    const place = Math.floor((x - this.start) / this.step)
    return this.visible[Math.min(Math.max(place, 0), this.visible.length - 1)] ?? null
  }

  key(event) {
    const batches = this.visible
    if (!batches.length) return
    const now = batches.findIndex(batch => batch.at === this.chosen)
    const from = now < 0 ? batches.length : now
    const to = {
      ArrowLeft: from - 1,
      ArrowDown: from - 1,
      ArrowRight: from + 1,
      ArrowUp: from + 1,
      PageUp: from + 10,
      PageDown: from - 10,
      Home: 0,
      End: batches.length - 1,
    }[event.key]
    if (event.key === 'Escape') this.choose(null)
    if (to === undefined) return
    event.preventDefault()
    this.choose(batches[Math.min(Math.max(to, 0), batches.length - 1)])
  }

  choose(batch) {
    this.chosen = batch?.at ?? null
    this.mark()
  }

  mark() {
    const batches = this.visible
    const place = batches.findIndex(batch => batch.at === this.chosen)
    this.marker.style.display = place < 0 ? 'none' : ''
    if (place >= 0) {
      this.marker.setAttribute('x', this.start + place * this.step - 1)
      this.marker.setAttribute('width', this.step + 1)
    }
    this.place.setAttribute('aria-valuenow', String(place < 0 ? batches.length : place + 1))
    this.tell(batches[place] ?? null)
  }

  tell(batch) {
    const newest = this.batches.at(-1)
    const text = batch
      ? described(batch)
      : newest
        ? `Newest: ${described(newest)}`
        : 'Each column shows a batch.'
    this.place.setAttribute('aria-valuetext', text)
    this.showText(text)
  }
}

export function slowest(batch) {
  return batch.slowest_ms ?? batch.ms
}

function described(batch) {
  const ran = batch.ran_as > batch.size ? `, ran as ${batch.ran_as}` : ''
  return (
    `${clock(batch.at)} · ${batch.size} ${batch.size === 1 ? 'item' : 'items'}${ran} · ` +
    `${milliseconds(batch.ms)} in the model, slowest result ${milliseconds(slowest(batch))} · ` +
    `${batch.waiting} still waiting · ${capitalized(batch.reason)}`
  )
}

function scale({ top, height }, most) {
  const limit = most || 1
  return { top, most: limit, y: value => top + height * (1 - Math.min(value / limit, 1)) }
}

function rect(kind, x, width, of, to, from) {
  return draw('rect', {
    class: kind,
    x,
    width,
    y: of.y(to),
    height: Math.max(of.y(from) - of.y(to), 0),
  })
}

function steps(most) {
  return most <= 1 ? [0, 1] : most % 2 ? [0, most] : [0, most / 2, most]
}
