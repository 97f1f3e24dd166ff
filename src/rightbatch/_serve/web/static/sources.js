// A row for every source, and one for the HTTP requests.

import { hasToken } from './ask.js'
import { Keyed, at, make, measure, set, write } from './dom.js'
import { forget, hasFrames, keep, refresh } from './snapshots.js'
import { causes, count, duration, figure, milliseconds, share } from './text.js'

const SCALE = 1.5 // length of the latency bar, in targets
const STALE = 2 // seconds without a frame after which its age is shown

const REQUESTS = {
  name: 'Requests',
  url: 'POST /predict',
  contract: 'deadline',
  weight: null,
  live: true,
  state: 'open',
  error: null,
  size: null,
  frames: null,
  frames_per_second: null,
  last_frame_age: null,
  broken: 0,
  reconnects: 0,
}

const rows = new WeakMap() // element -> its parts

const CONTRACTS = {
  every: 'loses no frame',
  freshest: 'keeps the newest',
  deadline: 'drops late frames',
}

let list
let actions = {}

export function startSources(given) {
  actions = given
  list = new Keyed(
    at('rows'),
    ({ source, isRequests }) => build(source, isRequests),
    element => {
      const { image } = rows.get(element)
      if (image) forget(image)
    },
  )
}

export function showSources(status, acceptsImages) {
  const shown = status.sources.map(source => ({ key: `source ${source.name}`, source }))
  if (status.requests)
    shown.push({
      key: 'requests',
      source: { ...REQUESTS, ...status.requests },
      isRequests: true,
    })
  list.show(
    shown,
    one => one.key,
    (element, one) => fill(rows.get(element), one.source, status.latency_target_ms),
  )
  at('empty').hidden = shown.length > 0
  at('columns').hidden = shown.length === 0
  at('empty-predict').hidden = !acceptsImages
  const token = hasToken() ? "-H 'Authorization: Bearer TOKEN' " : ''
  set('curl', `curl ${token}--data-binary @image.jpg ${location.origin}/predict`)
  const running = status.sources.filter(source => source.state === 'running').length
  set('sources-note', status.sources.length ? `${running} of ${status.sources.length} running` : '')
  refresh()
}

function build(source, isRequests) {
  const row = { isRequests }
  const cell = (name, label) => {
    row[name] = make('dd')
    return make('div', { class: `cell of-${name}` }, make('dt', {}, label), row[name])
  }
  row.name = make('h3')
  row.url = make('p', { class: 'note url' })
  row.error = make('p', { class: 'problem' })
  row.track = bar()
  row.latencyText = make('span', { class: 'latency-text' })
  const cells = make(
    'dl',
    {},
    cell('state', 'State'),
    cell('arrives', 'Arriving'),
    cell('served', 'Served'),
    cell('inTime', 'In time'),
    cell('latency', 'Latency'),
    cell('drops', 'Dropped'),
  )
  row.badge = make('span', { class: 'state' })
  row.age = make('span', { class: 'note age' })
  row.state.append(row.badge, row.age)
  row.latency.append(row.track.element, row.latencyText)
  row.element = make(
    'li',
    { class: 'row' },
    isRequests ? make('div', { class: 'thumb still' }, 'HTTP') : thumbnail(row, source.name),
    make('div', { class: 'who' }, row.name, row.url, row.error),
    cells,
    isRequests ? make('span') : removeButton(source.name),
  )
  rows.set(row.element, row)
  return row.element
}

function thumbnail(row, name) {
  row.image = make('img', { alt: '', hidden: '' })
  row.still = make('span', {}, 'no frame yet')
  row.button = make(
    'button',
    { type: 'button', class: 'thumb', 'aria-label': `View ${name}` },
    row.still,
    row.image,
  )
  row.button.addEventListener('click', () => actions.view(name))
  keep(row.image, row.button, name)
  return row.button
}

function removeButton(name) {
  const button = make(
    'button',
    { type: 'button', class: 'quiet remove', 'aria-label': `Remove ${name}` },
    'Remove',
  )
  button.addEventListener('click', () => actions.remove(name))
  return button
}

function bar() {
  const [middle, most, target] = ['p50', 'p99', 'target'].map(kind => make('i', { class: kind }))
  return {
    middle,
    most,
    target,
    element: make('div', { class: 'track', 'aria-hidden': 'true' }, most, middle, target),
  }
}

function fill(row, source, target) {
  write(row.name, source.name)
  write(
    row.url,
    row.isRequests
      ? source.url
      : `${source.url} · ${CONTRACTS[source.contract] ?? source.contract}`,
  )
  row.url.title = row.url.textContent
  write(row.error, source.error ?? '')
  row.error.title = source.error ?? ''
  write(row.badge, source.state)
  row.badge.dataset.state = source.state
  const old =
    source.last_frame_age !== null && source.last_frame_age > STALE && source.state !== 'ended'
  write(row.age, old ? `last frame ${duration(source.last_frame_age)} ago` : '')
  row.element.classList.toggle('stale', old || !['running', 'open', 'ended'].includes(source.state))
  const rate = source.frames_per_second
  measure(row.arrives, rate === null ? '–' : `${figure(rate)} /s`)
  measure(row.served, `${figure(source.served_per_second)} /s`)
  write(row.inTime, share(source.in_time, source.served))
  row.inTime.title = `${count(source.in_time)} of ${count(source.served)}`
  row.inTime.classList.toggle('bad', source.served > 0 && source.in_time / source.served < 0.99)
  fillLatency(row, source.latency_ms, target)
  fillDrops(row.drops, source.dropped)
  if (row.image) {
    hasFrames(row.image, source.frames)
    row.still.hidden = !row.image.hidden
    if (source.size) row.button.title = source.size.join(' × ')
  }
}

function fillLatency(row, { p50, p99 }, target) {
  const { middle, most, target: mark, element } = row.track
  const at = value => `${Math.min((100 * value) / (SCALE * target), 100)}%`
  element.classList.toggle('nothing', p99 === null)
  element.classList.toggle('late', p99 > target)
  mark.style.left = at(target)
  middle.style.left = at(p50 ?? 0)
  most.style.left = at(p50 ?? 0)
  most.style.width = `calc(${at(p99 ?? 0)} - ${at(p50 ?? 0)})`
  const text = `${milliseconds(p50)} p50 · ${milliseconds(p99)} p99`
  write(row.latencyText, p99 === null ? '–' : text)
}

function fillDrops(place, dropped) {
  const found = causes(dropped)
  const text = found.map(one => one.text).join(', ')
  if (place.dataset.text === text && place.childNodes.length) return
  place.dataset.text = text
  if (!found.length) return place.replaceChildren(make('span', { class: 'note' }, 'none'))
  place.replaceChildren(
    ...found.map(one =>
      make(
        'span',
        { class: one.expected ? 'cause note' : 'cause bad', title: one.meaning },
        one.text,
      ),
    ),
  )
}
