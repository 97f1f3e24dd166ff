// The figures at the top, the reasons for the sizes of the last batches, and a table of them.

import { slowest } from './chart.js'
import { at, make, measure, set } from './dom.js'
import {
  capitalized,
  causes,
  clock,
  count,
  figure,
  median,
  milliseconds,
  share,
  sum,
} from './text.js'

const TABLE = 30 // batches in the table

export function showFigures(status) {
  const { total, batches } = status
  const streams = [...status.sources, ...(status.requests ? [status.requests] : [])]
  measure(at('rate'), `${figure(sum(streams.map(stream => stream.served_per_second)))} /s`)
  set('rate-note', `${count(total.served)} since the start`)
  measure(at('in-time'), share(total.in_time, total.served))
  set('in-time-note', `${count(total.served - total.in_time)} late`)
  at('in-time').classList.toggle('bad', total.served > 0 && total.in_time / total.served < 0.99)
  const worst = streams.reduce(
    (most, stream) =>
      (stream.latency_ms.p99 ?? -1) > (most?.latency_ms.p99 ?? -1) ? stream : most,
    null,
  )
  const p99 = worst?.latency_ms.p99 ?? null
  measure(at('slowest'), milliseconds(p99))
  at('slowest').classList.toggle('bad', p99 > status.latency_target_ms)
  set(
    'slowest-note',
    p99 === null
      ? 'no result yet'
      : `${worst.name ?? 'Requests'}; target ${milliseconds(status.latency_target_ms)}`,
  )
  const usual = median(batches.map(batch => batch.size))
  set('size', usual === null ? '–' : count(usual))
  set(
    'size-note',
    status.calibration ? `median; ${count(status.largest_batch)} at most` : 'not measured yet',
  )
  set('waiting', count(status.waiting))
  set('waiting-note', status.waiting ? `oldest ${milliseconds(status.oldest_ms)}` : 'queues are empty')
  set('dropped', count(sum(Object.values(total.dropped))))
  set(
    'dropped-note',
    causes(total.dropped)
      .slice(0, 2)
      .map(one => one.text)
      .join(', ') || 'none',
  )
}

export function showTable(batches) {
  const body = at('batch-rows')
  if (!at('table').open) return
  const cells = batch => [
    clock(batch.at),
    count(batch.size),
    count(batch.ran_as),
    milliseconds(batch.ms),
    milliseconds(slowest(batch)),
    count(batch.waiting),
    capitalized(batch.reason),
  ]
  body.replaceChildren(
    ...batches
      .slice(-TABLE)
      .reverse()
      .map(batch => make('tr', {}, ...cells(batch).map(text => make('td', {}, text)))),
  )
}

export function showReasons(batches) {
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
      return make(
        'li',
        {},
        make('span', {}, capitalized(reason)),
        make('b', {}, `${Math.round((100 * number) / batches.length)} %`),
        fill,
      )
    }),
  )
  at('reasons-title').hidden = !sorted.length
}
