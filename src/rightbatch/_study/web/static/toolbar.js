// The x axis of all curves, the visible batch sizes, and the metric.

import { Keyed, at, make } from './dom.js'
import { sizeName } from './text.js'
import { change, toggled, view } from './view.js'

let sizes

export function startToolbar() {
  at('along').addEventListener('change', event => change({ along: event.target.value }))
  for (const scale of ['x', 'y'])
    at(`log-${scale}`).addEventListener('change', event =>
      change({ [scale]: event.target.checked ? 'log' : 'linear' }),
    )
  at('metric').addEventListener('change', event => change({ metric: event.target.value }))
  at('all-sizes').addEventListener('click', () => {
    change({ hide: [] })
    at('sizes').querySelector('button')?.focus()
  })
  sizes = new Keyed(at('sizes'), built)
}

export function showToolbar({ study, metric, colors }) {
  for (const radio of at('along').elements) {
    radio.checked = radio.value === view.along
    radio.parentElement.hidden = !study.axes.includes(radio.value)
  }
  at('log-x').checked = view.x === 'log'
  at('log-y').checked = view.y === 'log'
  options(at('metric'), study.metrics, metric)
  const known = study.sizes.map(size => size.batch_size)
  if (study.runs.some(run => run.batch_size === null)) known.push(null)
  sizes.show(known, String, (item, size) => {
    const button = item.firstElementChild
    button.setAttribute('aria-pressed', String(!view.hide.includes(String(size))))
    button.firstElementChild.style.background = colors.get(size)
  })
  at('all-sizes').hidden = !view.hide.length
}

function built(size) {
  const button = make(
    'button',
    { type: 'button', 'aria-label': sizeName(size) },
    make('i', { class: 'swatch', 'aria-hidden': 'true' }),
    size === null ? 'none' : String(size),
  )
  button.addEventListener('click', () => change({ hide: toggled(view.hide, String(size)) }))
  return make('li', {}, button)
}

// The options of a select, left alone if unchanged.
export function options(select, names, chosen) {
  const same =
    select.options.length === names.length &&
    names.every((name, place) => select.options[place].value === name)
  if (!same) select.replaceChildren(...names.map(name => make('option', { value: name }, name)))
  if (select.value !== chosen) select.value = chosen
}
