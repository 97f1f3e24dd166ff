// One run in detail: its curves, parameters and outcome.

import { Chart } from './chart.js'
import { colorOf } from './colors.js'
import { documents } from './documents.js'
import { at, describe, make, set, write } from './dom.js'
import { along, bytes, count, moment, number, rough, seconds, status } from './text.js'
import { options } from './toolbar.js'
import { change, view } from './view.js'

const FEW = 15 // points; curves with fewer have markers

let chart
let shown = null // the document of the run that is open
let asked = '' // id and version of the requested document
let metric = ''
let opener = null

export function startDetail() {
  chart = new Chart(at('detail-curve'), curve)
  const dialog = at('detail')
  at('detail-close').addEventListener('click', () => dialog.close())
  dialog.addEventListener('close', () => {
    change({ run: '' })
    opener?.focus()
  })
  dialog.addEventListener('click', event => event.target === dialog && dialog.close())
  at('detail-metric').addEventListener('change', event => {
    metric = event.target.value
    chart.show(chart.now)
  })
}

export function openDetail(id) {
  opener = document.activeElement
  change({ run: id })
}

export async function showDetail(now) {
  const dialog = at('detail')
  const id = view.run
  if (!id) {
    asked = ''
    if (dialog.open) dialog.close()
    return
  }
  if (!dialog.open) {
    const known = now.study.runs.find(run => run.id === id)
    clear(known?.name ?? id)
    dialog.showModal()
  }
  const version = `${id} ${documents.tag}`
  if (asked !== version) {
    asked = version
    try {
      const run = await documents.run(id)
      if (asked !== version) return
      shown = run
      set('detail-error', '')
    } catch (error) {
      if (asked !== version) return
      asked = ''
      set('detail-error', `The run cannot be shown: ${error.message}`)
      return
    }
  }
  if (shown?.id === id) fill(now)
}

function clear(name) {
  shown = null
  set('detail-title', name)
  for (const id of ['detail-reason', 'detail-error', 'detail-status']) set(id, '')
  for (const id of ['detail-facts', 'parameters', 'metrics']) describe(at(id), [])
  for (const id of ['detail-curves', 'detail-lists', 'events-part']) at(id).hidden = true
}

function fill(now) {
  const run = shown
  set('detail-title', run.name)
  set('detail-status', status(run.status))
  at('detail-status').dataset.state = run.status
  set('detail-reason', run.reason ?? '')
  describe(at('detail-facts'), facts(run))
  const some = describe(at('parameters'), Object.entries(run.parameters))
  const values = Object.entries(run.metrics).map(([name, value]) => [name, number(value)])
  at('detail-lists').hidden = !(describe(at('metrics'), values) + some)
  const names = [
    ...now.study.metrics.filter(name => run.curves[name]),
    ...Object.keys(run.curves).filter(name => !now.study.metrics.includes(name)),
  ]
  at('detail-curves').hidden = !names.length
  if (!names.includes(metric)) metric = names.includes(now.metric) ? now.metric : (names[0] ?? '')
  options(at('detail-metric'), names, metric)
  showEvents(run.events ?? [])
  chart.show(now)
}

function facts(run) {
  const steps = run.steps ? `${along('steps', run.steps)}, ${along('examples', run.examples)}` : ''
  const limit = run.limit_bytes ? `, limit ${bytes(run.limit_bytes)}` : ''
  return [
    ['Batch size', run.batch_size === null ? '' : count(run.batch_size)],
    ['Micro-batch', run.micro_batch_size ? count(run.micro_batch_size) : ''],
    ['Seed', run.seed],
    ['Learning rate', run.learning_rate === null ? '' : number(run.learning_rate)],
    ['Trained', steps],
    ['Epochs', run.epochs ? rough(run.epochs) : ''],
    ['Time', run.seconds ? seconds(run.seconds) : ''],
    ['Throughput', run.examples_per_second ? `${rough(run.examples_per_second)} examples/s` : ''],
    ['Peak memory', run.peak_bytes ? `${bytes(run.peak_bytes)}${limit}` : ''],
    ['Device', run.device],
    ['Started', moment(run.started)],
  ]
}

// An event is a text, or an object whose fields are listed.
function showEvents(events) {
  const texts = events.map(event =>
    typeof event === 'object' && event !== null
      ? Object.entries(event)
          .map(
            ([name, value]) =>
              `${name}: ${typeof value === 'object' ? JSON.stringify(value) : value}`,
          )
          .join(' · ')
      : String(event),
  )
  at('events-part').hidden = !texts.length
  const list = at('events')
  texts.forEach((text, place) => {
    if (!list.children[place]) list.append(make('li'))
    write(list.children[place], text)
  })
  while (list.children.length > texts.length) list.lastElementChild.remove()
}

function curve(now) {
  const run = shown
  const values = run?.curves[metric]
  if (!values) return null
  const places = values[view.along]
    .map((place, index) => index)
    .filter(index => {
      const [x, y] = [values[view.along][index], values.values[index]]
      return x !== null && y !== null && (view.x === 'linear' || x > 0)
    })
  const x = places.map(index => values[view.along][index])
  const y = places.map(index => values.values[index])
  const color = colorOf(now.colors, run.batch_size, run.name)
  return {
    title: metric,
    key: [run.id, metric, view.along, view.x, view.y].join('|'),
    build: () =>
      places.length
        ? {
            traces: [
              {
                type: 'scatter',
                mode: places.length <= FEW ? 'lines+markers' : 'lines',
                x,
                y,
                line: { color, width: 2 },
                marker: { color, size: 5 },
                hovertemplate: `%{y} at %{x} ${view.along}<extra></extra>`,
              },
            ],
            layout: {
              xaxis: { title: view.along, type: view.x },
              yaxis: { type: view.y },
              uirevision: [run.id, metric, view.along, view.x, view.y].join('|'),
            },
            caption: `${metric} against ${view.along}: from ${number(y[0])} to ${number(y.at(-1))}.`,
            head: [view.along, metric],
            rows: x.map((place, index) => [number(place), number(y[index])]),
          }
        : { nothing: `${view.along} were not recorded with ${metric}.` },
  }
}
