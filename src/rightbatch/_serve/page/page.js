// The page: asks for the status every second and shows it; says so when there is none.

import { ask, Refused, setToken, takeToken } from './ask.js'
import { showCapacity, startCapacity } from './capacity.js'
import { BatchChart, slowest } from './chart.js'
import { openRemove, openView, startDialogs, updateView } from './dialogs.js'
import { at, make, measure, set, write } from './dom.js'
import { showSources, startSources, totalDropped } from './sources.js'
import { capitalized, causes, clock, count, duration, figure, median, milliseconds, share, sum } from './text.js'

const EVERY = 1000 // milliseconds
const SLOWEST = 5000 // between two attempts, where there is no answer
const TABLE = 30 // batches in the table

let chart
let heard = null // when the last answer came
let failures = 0
let timer = 0
let asking = false
let takesImages = null

async function poll() {
  clearTimeout(timer)
  if (asking) return
  asking = true
  try {
    takesImages ??= (await (await ask('/health')).json()).predict
    const status = await (await ask('/status')).json()
    heard = new Date()
    failures = 0
    at('ask-token').hidden = true
    at('main').hidden = false
    notice(ENDS[status.state] ?? '')
    show(status)
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return askForToken()
    lost(error)
  } finally {
    asking = false
  }
  timer = setTimeout(poll, Math.min(EVERY * Math.max(failures, 1), SLOWEST))
}

const ENDS = {
  stopping: 'The server is stopping: it finishes what it accepted.',
  stopped: 'The server has stopped.',
}

function lost(error) {
  failures += 1
  const why = error instanceof Refused ? `The server answers: ${error.message}.` : 'The server does not answer.'
  const since = heard ? ` What is shown was so at ${heard.toLocaleTimeString('en-GB')}.` : ''
  notice(`${why}${since} Trying again…`)
  at('state').dataset.state = 'lost'
  set('state', 'no connection')
}

function notice(text) {
  const place = at('notice')
  place.hidden = !text
  write(place, text)
  document.body.classList.toggle('lost', failures > 0)
}

function askForToken() {
  const form = at('ask-token')
  if (!form.hidden) set('token-error', 'That is not the token.')
  form.hidden = false
  at('main').hidden = true
  notice('')
  at('state').dataset.state = 'waiting'
  set('state', 'needs a token')
  at('token').focus()
}

function show(status) {
  set('model', status.model)
  document.title = `${status.model} · rightbatch`
  set('state', status.state)
  at('state').dataset.state = status.state
  set('target', `target ${milliseconds(status.latency_target_ms)}`)
  set('since', `up ${duration(Date.now() / 1000 - status.since)}`)
  showFigures(status)
  chart.show(status.batches, status.latency_target_ms, status.largest_batch)
  showTable(status.batches)
  showReasons(status.batches)
  showCapacity(status.calibration)
  showSources(status, takesImages)
  updateView(status)
  const { lines, left_out: leftOut, error } = status.written
  set('written', `${count(lines)} results written${leftOut ? `, ${count(leftOut)} left out` : ''}${error ? `: ${error}` : ''}`)
  at('written').classList.toggle('bad', Boolean(error || leftOut))
}

function showFigures(status) {
  const { total, batches } = status
  const streams = [...status.sources, ...(status.requests ? [status.requests] : [])]
  measure(at('rate'), figure(sum(streams.map(stream => stream.served_per_second))), '/s')
  set('rate-note', `${count(total.served)} since the start`)
  set('in-time', share(total.in_time, total.served))
  set('in-time-note', `${count(total.served - total.in_time)} late`)
  at('in-time').classList.toggle('bad', total.served > 0 && total.in_time / total.served < 0.99)
  const worst = streams.reduce((most, stream) => ((stream.latency_ms.p99 ?? -1) > (most?.latency_ms.p99 ?? -1) ? stream : most), null)
  const p99 = worst?.latency_ms.p99 ?? null
  const [number, unit] = milliseconds(p99).split(' ')
  measure(at('slowest'), number, unit)
  at('slowest').classList.toggle('bad', p99 > status.latency_target_ms)
  set('slowest-note', p99 === null ? 'no result yet' : `${worst.name ?? 'Requests'}; target ${milliseconds(status.latency_target_ms)}`)
  const usual = median(batches.map(batch => batch.size))
  set('size', usual === null ? '–' : count(usual))
  set('size-note', `median; ${count(status.largest_batch)} at most`)
  set('waiting', count(status.waiting))
  set('waiting-note', status.waiting ? `oldest ${milliseconds(status.oldest_ms)}` : 'nobody waits')
  set('dropped', count(totalDropped(total.dropped)))
  set('dropped-note', causes(total.dropped).slice(0, 2).map(one => one.text).join(', ') || 'none')
}

function showTable(batches) {
  const body = at('batch-rows')
  if (!body.closest('details').open) return
  const cells = batch => [
    clock(batch.at), count(batch.size), count(batch.ran_as), milliseconds(batch.ms), milliseconds(slowest(batch)), count(batch.waiting), capitalized(batch.reason),
  ]
  body.replaceChildren(
    ...batches.slice(-TABLE).reverse().map(batch => make('tr', {}, ...cells(batch).map(text => make('td', {}, text)))),
  )
}

function showReasons(batches) {
  const numbers = new Map()
  for (const { reason } of batches) numbers.set(reason, (numbers.get(reason) ?? 0) + 1)
  const sorted = [...numbers].sort((one, other) => other[1] - one[1])
  const text = JSON.stringify(sorted)
  const place = at('reasons')
  if (place.dataset.text === text) return
  place.dataset.text = text
  place.replaceChildren(
    ...sorted.map(([reason, number]) => {
      const fill = make('i', { 'aria-hidden': 'true' })
      fill.style.width = `${(100 * number) / batches.length}%`
      return make('li', {}, make('span', {}, capitalized(reason)), make('b', {}, `${Math.round((100 * number) / batches.length)} %`), fill)
    }),
  )
  at('reasons-title').hidden = !sorted.length
}

takeToken()
chart = new BatchChart(at('chart'), text => set('batch', text))
startCapacity()
startSources({ view: openView, remove: openRemove })
startDialogs(poll)
at('ask-token').addEventListener('submit', event => {
  event.preventDefault()
  setToken(at('token').value.trim())
  poll()
})
document.querySelector('details').addEventListener('toggle', poll)
document.addEventListener('visibilitychange', () => document.hidden || poll())
poll()
