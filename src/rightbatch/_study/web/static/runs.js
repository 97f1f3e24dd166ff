// The table of runs: filter, sort, select.

import { runsSaid } from './answer.js'
import { colorOf } from './colors.js'
import { columnsOf, matching, sorted } from './columns.js'
import { openDetail } from './detail.js'
import { showDiff } from './diff.js'
import { Keyed, at, make, set, write } from './dom.js'
import { count, plural, status } from './text.js'
import { change, toggled, view } from './view.js'

const ROWS = 100 // shown at first

let heads
let rows
let chips

export function startRuns() {
  heads = new Keyed(at('columns'), builtHead)
  rows = new Keyed(at('rows'), builtRow)
  chips = new Keyed(at('statuses'), builtChip)
  at('filter').addEventListener('input', event => change({ filter: event.target.value }))
  at('no-filter').addEventListener('click', () => {
    change({ filter: '', status: [] })
    at('filter').focus()
  })
  at('show-all').addEventListener('click', () => {
    change({ all: view.all ? '' : 'yes' })
    at('show-all').scrollIntoView({ block: 'nearest' })
  })
  at('unpick').addEventListener('click', () => {
    change({ pick: [] })
    at('filter').focus()
  })
  at('equal-too').addEventListener('change', event =>
    change({ equal: event.target.checked ? 'yes' : '' }),
  )
}

export function showRuns(now) {
  const { runs } = now.study
  const columns = columnsOf(now)
  const found = sorted(matching(runs, view), columns, view.sort)
  const shown = view.all ? found : found.slice(0, ROWS)
  if (at('filter').value !== view.filter) at('filter').value = view.filter
  showStatuses(runs)
  heads.show([{ name: 'pick' }, ...columns], ({ name }) => name, fillHead)
  rows.show(
    shown,
    run => run.id,
    (row, run) => fillRow(row, run, columns, now.colors),
  )
  const isFiltered = found.length < runs.length
  set(
    'runs-note',
    isFiltered ? `${count(found.length)} of ${plural(runs.length, 'run')} match` : runsSaid(runs),
  )
  at('none').hidden = found.length > 0
  at('show-all').hidden = found.length <= ROWS
  set('show-all', view.all ? `Show the first ${ROWS}` : `Show all ${count(found.length)} runs`)
  const picked = runs.filter(run => view.pick.includes(run.id))
  at('picked').hidden = !picked.length
  set(
    'picked-note',
    picked.length === 1
      ? '1 run selected; select another to see what differs.'
      : `${count(picked.length)} runs selected; the differences are below.`,
  )
  at('equal-too').checked = Boolean(view.equal)
  showDiff(picked, now.colors, Boolean(view.equal))
}

function showStatuses(runs) {
  const numbers = new Map()
  for (const run of runs) numbers.set(run.status, (numbers.get(run.status) ?? 0) + 1)
  for (const name of view.status) if (!numbers.has(name)) numbers.set(name, 0)
  at('statuses').hidden = numbers.size < 2 && !view.status.length
  chips.show(
    [...numbers],
    ([name]) => name,
    (chip, [name, some]) => {
      chip.setAttribute('aria-pressed', String(view.status.includes(name)))
      write(chip.lastElementChild, count(some))
    },
  )
}

function builtChip([name]) {
  const chip = make(
    'button',
    { type: 'button', class: 'chip' },
    make('span', { class: 'state', 'data-state': name }, status(name)),
    ' ',
    make('b'),
  )
  chip.addEventListener('click', () => change({ status: toggled(view.status, name) }))
  return chip
}

function builtHead({ name, label, isText }) {
  if (name === 'pick')
    return make('th', { class: 'pick' }, make('span', { class: 'hidden' }, 'Select'))
  const button = make('button', { type: 'button', class: 'sort' }, label)
  button.addEventListener('click', () => sortBy(name, isText))
  return make('th', { scope: 'col', class: isText ? 'words' : null }, button)
}

// The first click sorts names from A and numbers from the lowest.
function sortBy(name) {
  const next = { [name]: `-${name}`, [`-${name}`]: '' }
  change({ sort: next[view.sort] ?? name })
}

function fillHead(head, { name, label }) {
  if (name === 'pick') return
  write(head.firstElementChild, label)
  const order = { [name]: 'ascending', [`-${name}`]: 'descending' }[view.sort]
  if (order) head.setAttribute('aria-sort', order)
  else head.removeAttribute('aria-sort')
}

function builtRow(run) {
  const box = make('input', { type: 'checkbox' })
  box.addEventListener('change', () => change({ pick: toggled(view.pick, run.id) }))
  return make('tr', {}, make('td', { class: 'pick' }, make('label', {}, box)))
}

function fillRow(row, run, columns, colors) {
  const isPicked = view.pick.includes(run.id)
  const box = row.querySelector('input')
  box.checked = isPicked
  box.setAttribute('aria-label', `Select ${run.name}`)
  row.classList.toggle('is-picked', isPicked)
  const names = columns.map(({ name }) => name).join()
  if (row.dataset.columns !== names) {
    row.dataset.columns = names
    row.replaceChildren(row.firstElementChild, ...columns.map(column => builtCell(run, column)))
  }
  columns.forEach((column, place) => fillCell(row.children[place + 1], run, column, colors))
}

function builtCell(run, { name, isText }) {
  if (name === 'name') {
    const open = make('button', { type: 'button', class: 'link' })
    open.addEventListener('click', () => openDetail(run.id))
    return make('th', { scope: 'row', class: 'words' }, open)
  }
  if (name === 'status')
    return make(
      'td',
      { class: 'words' },
      make('span', { class: 'state' }),
      make('span', { class: 'reason' }),
    )
  if (name === 'batch_size')
    return make('td', {}, make('i', { class: 'swatch', 'aria-hidden': 'true' }), make('span'))
  return make('td', { class: isText ? 'words' : null })
}

function fillCell(cell, run, { name, value, text }, colors) {
  if (name === 'name') write(cell.firstElementChild, run.name)
  else if (name === 'status') {
    const [state, reason] = cell.children
    state.dataset.state = run.status
    write(state, status(run.status))
    // The reason of a finished run is not shown.
    write(reason, run.status === 'finished' ? '' : (run.reason ?? ''))
    reason.title = run.reason ?? ''
  } else if (name === 'batch_size') {
    cell.firstElementChild.style.background = colorOf(colors, run.batch_size, run.name)
    write(cell.lastElementChild, text(value(run)))
  } else write(cell, text ? text(value(run)) : String(value(run) ?? ''))
}
