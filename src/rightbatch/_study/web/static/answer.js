// The top of the page: the answer of the study and its numbers.

import { at, make, measured } from './dom.js'
import {
  about,
  bytes,
  count,
  interval,
  isNumber,
  plural,
  range,
  rough,
  seconds,
  status,
} from './text.js'

const FIRST = [
  ['seconds', 'Soonest', seconds, ''],
  ['steps', 'Fewest steps', rough, ' steps'],
  ['examples', 'Fewest examples', rough, ' examples'],
]

export function showAnswer({ study, colors }) {
  const { sentences } = study.answer
  at('tiles').hidden = !study.target // else they are empty
  const tiles = [...FIRST.map(first => firstTile(study, ...first)), memory(study), critical(study)]
  const said = JSON.stringify([sentences, tiles, [...colors]])
  const place = at('tiles')
  if (place.dataset.said === said) return
  place.dataset.said = said
  at('sentences').replaceChildren(...sentences.map(sentence => make('li', {}, sentence)))
  place.replaceChildren(
    ...tiles.map(({ label, text, before = '', note, size }) => {
      const value = make('dd', {}, ...measured(text))
      if (before) value.prepend(make('span', { class: 'unit' }, before))
      if (size !== undefined) {
        const swatch = make('i', { class: 'swatch', 'aria-hidden': 'true' })
        swatch.style.background = colors.get(size)
        value.prepend(swatch)
      }
      return make('div', {}, make('dt', {}, label), value, make('dd', { class: 'note' }, note))
    }),
  )
}

function firstTile(study, axis, label, format, unit) {
  const batch = study.answer.first[axis]
  if (batch === null || batch === undefined) {
    return { label, text: '–', note: 'no run has reached the target' }
  }
  const reached = sizeOf(study, batch)?.reached
  return {
    label,
    text: String(batch),
    before: 'batch ',
    note: reached ? noteOf(reached, axis, format, unit) : '',
    size: batch,
  }
}

function noteOf(reached, axis, format, unit) {
  const { of, count: some } = reached
  const runs = some < of ? `; ${some} of ${plural(of, 'run')}` : ''
  return `${range(reached[axis], format)}${unit}${runs}`
}

function sizeOf(study, batch) {
  return study.sizes.find(size => size.batch_size === batch)
}

// The peak memory of the size that reaches the target soonest.
function memory(study) {
  const label = 'Peak memory'
  const batch = study.answer.first.seconds
  const size = batch === null ? null : sizeOf(study, batch)
  if (!isNumber(size?.peak_bytes?.middle)) return { label, text: '–', note: 'not measured' }
  const limit = isNumber(size.limit_bytes) ? `, limit ${bytes(size.limit_bytes)}` : ''
  return { label, text: bytes(size.peak_bytes.middle), note: `batch ${batch}${limit}` }
}

function critical({ critical: fit }) {
  const label = 'Critical batch size'
  if (!fit) return { label, text: '–', note: 'not fitted' }
  return {
    label,
    text: about(fit.batch_size),
    note: [interval(fit.low, fit.high), 'beyond it more parallelism stops paying']
      .filter(Boolean)
      .join('; '),
  }
}

// "18 runs: 16 finished, 1 out of memory, 1 running".
export function runsSaid(runs) {
  const numbers = new Map()
  for (const run of runs) numbers.set(run.status, (numbers.get(run.status) ?? 0) + 1)
  const parts = [...numbers].sort((one, other) => other[1] - one[1])
  if (parts.length === 1)
    return `${plural(runs.length, 'run')}, ${parts[0][1] > 1 ? 'all ' : ''}${status(parts[0][0])}`
  const told = parts.map(([name, some]) => `${count(some)} ${status(name)}`)
  return `${plural(runs.length, 'run')}: ${told.join(', ')}`
}
