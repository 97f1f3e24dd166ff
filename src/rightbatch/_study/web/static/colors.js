// One colour per batch size, from small to large, with enough contrast in both themes.

const RAMP = ['#2d3fb5', '#2f7fd0', '#0f9a9c', '#43a04f', '#c99a12', '#dd6a2a', '#bf3070']
const LEAST = 3 // minimum contrast of a line with the background, as WCAG 2 requires for graphics

const dark = window.matchMedia('(prefers-color-scheme: dark)')

export function onTheme(changed) {
  dark.addEventListener('change', changed)
}

// The page's colours, for Plotly.
export function theme() {
  const style = getComputedStyle(document.documentElement)
  const color = name => style.getPropertyValue(`--${name}`).trim()
  return {
    name: dark.matches ? 'dark' : 'light',
    font: style.fontFamily,
    ...Object.fromEntries(
      ['ground', 'panel', 'edge', 'faint', 'ink', 'soft', 'accent', 'bad'].map(name => [
        name,
        color(name),
      ]),
    ),
  }
}

// By batch size, or by name for runs without one.
export function colorsOf({ sizes, runs }, { panel, soft }) {
  const colors = new Map([[null, soft]])
  const names = runs.filter(run => run.batch_size === null).map(run => run.name)
  names.forEach((name, place) => colors.set(name, standingOut(ramp(place, names.length), panel)))
  sizes.forEach(({ batch_size: size, color }, place) => {
    if (size === null) return
    const given = /^#[0-9a-f]{6}$/i.test(color) ? color : ramp(place, sizes.length)
    colors.set(size, standingOut(given, panel))
  })
  return colors
}

export function colorOf(colors, size, name) {
  return colors.get(size ?? name) ?? colors.get(null)
}

export function faded(color, share) {
  return `rgba(${parts(color).join(', ')}, ${share})`
}

function ramp(place, count) {
  const at = count > 1 ? (place / (count - 1)) * (RAMP.length - 1) : 1
  const below = Math.min(Math.floor(at), RAMP.length - 2)
  return mixed(RAMP[below], RAMP[below + 1], at - below)
}

function standingOut(color, ground) {
  const away = light(ground) < 0.2 ? '#ffffff' : '#000000'
  for (let share = 0; share < 1; share += 0.06) {
    const tried = mixed(color, away, share)
    if (contrast(tried, ground) >= LEAST) return tried
  }
  return away
}

function contrast(one, other) {
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b)
  return (high + 0.05) / (low + 0.05)
}

function light(color) {
  const [red, green, blue] = parts(color).map(value => {
    const share = value / 255
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4
  })
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue
}

function mixed(one, other, share) {
  const to = parts(other)
  const values = parts(one).map((value, place) => Math.round(value + (to[place] - value) * share))
  return `#${values.map(value => value.toString(16).padStart(2, '0')).join('')}`
}

function parts(color) {
  return [1, 3, 5].map(place => Number.parseInt(color.slice(place, place + 2), 16))
}
