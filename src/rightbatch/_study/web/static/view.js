// The view, stored in the address: a link shows the same view.

const PLAIN = {
  metric: '', // '': the default metric
  along: 'steps',
  x: 'linear',
  y: 'linear',
  hide: [], // batch sizes, as text
  filter: '',
  status: [],
  sort: '', // a column's name, with a minus for descending order
  all: '',
  pick: [], // ids of runs
  equal: '',
  run: '', // id of the run in the detail dialog
}
const CHOICES = {
  along: ['steps', 'examples', 'seconds', 'epochs'],
  x: ['linear', 'log'],
  y: ['linear', 'log'],
}

export const view = { ...PLAIN }

let changed = () => {}

export function startView(onChange) {
  changed = onChange
  read()
  window.addEventListener('hashchange', () => {
    read()
    changed()
  })
}

export function change(part) {
  Object.assign(view, part)
  const said = new URLSearchParams()
  for (const [name, plain] of Object.entries(PLAIN)) {
    const value = view[name]
    if (Array.isArray(plain) ? value.length : value !== plain) {
      // Ids may contain commas, so a repeated field is a list.
      for (const one of [value].flat()) said.append(name, one)
    }
  }
  const hash = said.toString()
  history.replaceState(null, '', hash ? `#${hash}` : location.pathname + location.search)
  changed()
}

// The list with the item added, or removed if it was there.
export function toggled(list, item) {
  return list.includes(item) ? list.filter(one => one !== item) : [...list, item]
}

function read() {
  const said = new URLSearchParams(location.hash.slice(1))
  for (const [name, plain] of Object.entries(PLAIN)) {
    const values = said.getAll(name)
    if (Array.isArray(plain)) view[name] = values
    else {
      const value = values.at(-1) ?? plain
      view[name] = CHOICES[name] && !CHOICES[name].includes(value) ? plain : value
    }
  }
}
