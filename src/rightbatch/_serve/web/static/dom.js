// Elements. Text is always set as text: names and errors come from outside.

const SVG = 'http://www.w3.org/2000/svg'

export function at(id) {
  return document.getElementById(id)
}

export function set(id, text) {
  write(at(id), text)
}

// Leaving alone what has not changed keeps a selection in it.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text
}

export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children)
}

export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children)
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value)
  }
  element.append(...children)
  return element
}

// A number with its unit set smaller.
export function measure(element, number, unit) {
  const text = unit ? `${number} ${unit}` : number
  if (element.textContent === text) return
  element.replaceChildren(number, ...(unit ? [make('span', { class: 'unit' }, ` ${unit}`)] : []))
}
