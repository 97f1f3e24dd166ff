// The columns of the table of runs.

import { bytes, count, isNumber, number, rough, seconds, status } from './text.js'

// `value` is the sort key, `text` the formatted value.
export function columnsOf({ study, metric }) {
  const { target } = study
  return [
    { name: 'name', label: 'Run', isText: true, value: run => run.name },
    { name: 'batch_size', label: 'Batch size', value: run => run.batch_size, text: count },
    { name: 'seed', label: 'Seed', value: run => run.seed, text: plain },
    { name: 'status', label: 'Status', isText: true, value: run => status(run.status) },
    ...(target
      ? [
          {
            name: 'target_seconds',
            label: 'To target',
            value: run => run.reached?.seconds,
            text: seconds,
          },
          {
            name: 'target_steps',
            label: 'In steps',
            value: run => run.reached?.steps,
            text: rough,
          },
        ]
      : []),
    ...(metric
      ? [{ name: 'metric', label: metric, value: run => run.metrics[metric], text: number }]
      : []),
    {
      name: 'learning_rate',
      label: 'Learning rate',
      value: run => run.learning_rate,
      text: number,
    },
    { name: 'steps', label: 'Steps', value: run => run.steps, text: count },
    { name: 'examples', label: 'Examples', value: run => run.examples, text: count },
    { name: 'seconds', label: 'Time', value: run => run.seconds, text: seconds },
    {
      name: 'examples_per_second',
      label: 'Examples/s',
      value: run => run.examples_per_second,
      text: rough,
    },
    { name: 'peak_bytes', label: 'Peak memory', value: run => run.peak_bytes, text: bytes },
  ]
}

function plain(value) {
  return isNumber(value) ? String(value) : '–'
}

export function sorted(runs, columns, sort) {
  const isDown = sort.startsWith('-')
  const column = columns.find(({ name }) => name === sort.slice(isDown ? 1 : 0))
  if (!column) return runs
  const sign = isDown ? -1 : 1
  const isMissing = value => value === null || value === undefined || value === ''
  return [...runs].sort((one, other) => {
    const [a, b] = [column.value(one), column.value(other)]
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b) // at the end in both orders
    return sign * (column.isText ? a.localeCompare(b, 'en', { numeric: true }) : a - b)
  })
}

// Every word of the filter must occur in a run's texts; `name=value` matches a parameter or field.
export function matching(runs, { filter, status: statuses }) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean)
  return runs.filter(
    run =>
      (!statuses.length || statuses.includes(run.status)) && words.every(word => has(run, word)),
  )
}

function has(run, word) {
  const [name, ...rest] = word.split('=')
  if (rest.length) {
    const value = valueOf(run, name)
    return value !== undefined && String(value).toLowerCase() === rest.join('=')
  }
  const texts = [run.name, status(run.status), run.status, run.reason, run.device]
  return texts.some(text =>
    String(text ?? '')
      .toLowerCase()
      .includes(word),
  )
}

function valueOf(run, name) {
  const named = Object.entries(run.parameters).find(([key]) => key.toLowerCase() === name)
  return named ? named[1] : run[{ batch: 'batch_size' }[name] ?? name]
}
