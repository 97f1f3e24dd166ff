// The differences between the selected runs, side by side.

import { colorOf } from './colors.js'
import { at, make, set } from './dom.js'
import { bytes, count, number, plural, seconds, status } from './text.js'

const FIELDS = [
  ['batch_size', count],
  ['seed', String],
  ['status', status],
  ['reason', String],
  ['learning_rate', number],
  ['learning_rate_factor', number],
  ['micro_batch_size', count],
  ['steps', count],
  ['examples', count],
  ['epochs', number],
  ['seconds', seconds],
  ['examples_per_second', number],
  ['peak_bytes', bytes],
  ['limit_bytes', bytes],
  ['device', String],
]

export function showDiff(runs, colors, withEqual) {
  const place = at('diff')
  place.hidden = runs.length < 2
  if (place.hidden) return
  const parts = [
    ['Run', FIELDS.map(([name, format]) => rowOf(runs, name, run => run[name], format))],
    ['Parameters', named(runs, 'parameters', String)],
    ['Last values', named(runs, 'metrics', number)],
  ]
  const text = JSON.stringify([runs.map(run => [run.id, run.name]), parts, withEqual, [...colors]])
  if (place.dataset.text === text) return
  place.dataset.text = text
  const all = parts.flatMap(([, rows]) => rows).filter(row => row.isThere)
  const equal = all.filter(row => !row.differs).length
  const rest = `${count(equal)} equal ${equal === 1 ? 'value is' : 'values are'}`
  const differing = `${plural(all.length - equal, 'difference')}; ${rest} ${withEqual ? 'shown too' : 'hidden'}.`
  set('diff-note', all.length === equal ? 'No differences.' : differing)
  at('diff-table').replaceChildren(
    headOf(runs, colors),
    ...parts.flatMap(part => bodyOf(part, runs, withEqual)),
  )
}

function named(runs, field, format) {
  const names = [...new Set(runs.flatMap(run => Object.keys(run[field])))].sort()
  const own = new Set(FIELDS.map(([name]) => name))
  return names
    .filter(name => field === 'metrics' || !own.has(name)) // already among the run's fields
    .map(name => rowOf(runs, name, run => run[field][name], format))
}

function rowOf(runs, name, value, format) {
  const values = runs.map(value).map(one => one ?? null)
  return {
    name,
    texts: values.map(one => (one === null || one === '' ? '–' : format(one))),
    isThere: values.some(one => one !== null && one !== ''),
    differs: new Set(values.map(one => JSON.stringify(one))).size > 1,
  }
}

function headOf(runs, colors) {
  const heads = runs.map(run => {
    const swatch = make('i', { class: 'swatch', 'aria-hidden': 'true' })
    swatch.style.background = colorOf(colors, run.batch_size, run.name)
    return make('th', { scope: 'col' }, swatch, run.name)
  })
  return make('thead', {}, make('tr', {}, make('td'), ...heads))
}

function bodyOf([title, rows], runs, withEqual) {
  const shown = rows.filter(row => row.isThere && (row.differs || withEqual))
  if (!shown.length) return []
  const head = make('th', { scope: 'rowgroup', colspan: runs.length + 1, class: 'group' }, title)
  return [
    make(
      'tbody',
      {},
      make('tr', {}, head),
      ...shown.map(({ name, texts, differs }) =>
        make(
          'tr',
          { class: differs ? null : 'equal' },
          make('th', { scope: 'row' }, name),
          ...texts.map(text => make('td', {}, text)),
        ),
      ),
    ),
  ]
}
