// Peak memory against batch size, with the limit and the sizes that ran out of memory.

import { field, shown } from './points.js'
import { bytes, isNumber, joined, plural, unitOfBytes } from './text.js'

export function memory(now) {
  const out = shown(now).filter(({ statuses }) => statuses.out_of_memory)
  const limits = shown(now)
    .map(size => size.limit_bytes)
    .filter(isNumber)
  const limit = limits.length ? Math.max(...limits) : null
  const peaks = shown(now)
    .map(size => size.peak_bytes?.high ?? size.peak_bytes?.middle)
    .filter(isNumber)
  if (!peaks.length && limit === null) {
    const names = joined(out.map(size => String(size.batch_size)))
    const nothing = `Out of memory at ${names}; no peak was measured.`
    return out.length ? { title: 'Peak memory', key: nothing, build: () => ({ nothing }) } : null
  }
  const { unit, bytes: one } = unitOfBytes(Math.max(limit ?? 0, ...peaks))
  return field(scaledSizes(now, one), 'peak_bytes', {
    title: `Peak memory, ${unit}`,
    format: value => bytes(value * one),
    yaxis: { type: 'linear', rangemode: 'tozero' },
    more: out.map(size => size.batch_size),
    extra: () => memoryExtra(out, limit, one, now.theme),
    said: points => memorySaid(points, out, limit, one),
  })
}

function scaledSizes(now, one) {
  const part = value => (isNumber(value) ? value / one : value)
  const sizes = now.study.sizes.map(size => ({
    ...size,
    peak_bytes: size.peak_bytes && {
      middle: part(size.peak_bytes.middle),
      low: part(size.peak_bytes.low),
      high: part(size.peak_bytes.high),
    },
  }))
  return { ...now, study: { ...now.study, sizes } }
}

function memoryExtra(out, limit, one, theme) {
  const edge = limit === null ? null : limit / one
  const at = size => edge ?? size.peak_bytes?.high / one
  const lost = out.filter(size => isNumber(at(size)))
  return {
    traces: [
      {
        type: 'scatter',
        mode: 'markers',
        name: 'out of memory',
        x: lost.map(size => size.batch_size),
        y: lost.map(at),
        marker: { symbol: 'x', size: 11, color: theme.bad },
        text: lost.map(
          ({ batch_size: size, statuses, runs }) =>
            `<b>batch ${size}</b><br>` +
            `out of memory: ${statuses.out_of_memory} of ${plural(runs, 'run')}`,
        ),
        hovertemplate: '%{text}<extra></extra>',
      },
    ],
    ...(edge === null
      ? {}
      : {
          shapes: [
            {
              type: 'line',
              xref: 'paper',
              x0: 0,
              x1: 1,
              y0: edge,
              y1: edge,
              line: { color: theme.bad, width: 1.25, dash: 'dash' },
            },
          ],
          annotations: [
            {
              text: 'limit',
              xref: 'paper',
              x: 0,
              xanchor: 'left',
              y: edge,
              yanchor: 'bottom',
              showarrow: false,
              font: { color: theme.bad, size: 11 },
            },
          ],
        }),
  }
}

function memorySaid(points, out, limit, one) {
  const last = points.at(-1)
  return [
    last ? `${bytes(last.band.middle * one)} at batch ${last.size}` : '',
    limit === null ? '' : `limit ${bytes(limit)}, dashed`,
    out.length
      ? `out of memory at ${joined(out.map(size => String(size.batch_size)))}, crosses`
      : '',
  ]
    .filter(Boolean)
    .join('; ')
    .concat('.')
}
