// The curves: five charts by Chart.js (the global `Chart`) with one cursor and one zoom for all
// that share an axis. Values under the cursor are text above each chart, for eyes and readers.

import * as format from './format.js';

/** A drag shorter than this is a click. */
const DRAG_PIXELS_MIN = 8;

/** The charts: axis `step` or `time`; `series` are keys of the data given to `set`. */
const CHARTS = {
  loss: {
    title: 'Loss',
    axis: 'step',
    logarithmic: true,
    series: [
      { key: 'loss', label: 'train', colour: 'train', smooth: true, write: format.loss },
      { key: 'val_loss', label: 'val', colour: 'val', dots: true, write: format.loss },
    ],
  },
  lr: {
    title: 'Learning rate',
    axis: 'step',
    fromZero: true,
    series: [{ key: 'lr', label: '', colour: 'train', write: format.figure }],
  },
  grad_norm: {
    title: 'Gradient norm',
    axis: 'step',
    series: [
      { key: 'grad_norm', label: '', colour: 'train', smooth: true, write: format.figure },
    ],
  },
  speed: {
    title: 'Speed',
    axis: 'step',
    second: true,
    fromZero: true,
    series: [
      {
        key: 'tokens_per_second',
        label: 'tokens/s',
        colour: 'train',
        smooth: true,
        write: format.short,
      },
      {
        key: 'mfu',
        label: 'MFU',
        colour: 'val',
        second: true,
        smooth: true,
        write: (value) => format.percent(value * 100),
        writeTick: (value) => format.percent(value * 100, 0),
      },
    ],
  },
  gpu: {
    title: 'GPU',
    axis: 'time',
    share: true,
    series: [
      {
        key: 'gpu_util',
        label: 'busy',
        colour: 'train',
        write: format.percent,
        writeTick: (value) => format.percent(value, 0),
      },
      { key: 'gpu_memory', label: 'memory', colour: 'third', write: format.percent },
    ],
  },
};

/** Exponential mean of the values, with the start's bias taken out, as TensorBoard draws it. */
export function smoothed(points, weight) {
  let mean = 0;
  let mass = 0;
  return points.map(({ x, y }) => {
    mean = mean * weight + (1 - weight) * y;
    mass = mass * weight + (1 - weight);
    return { x, y: mean / mass };
  });
}

/** The point whose x is nearest; points are sorted by x. */
export function nearest(points, x) {
  let low = 0;
  let high = points.length - 1;
  if (high < 0) return undefined;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle].x < x) low = middle;
    else high = middle;
  }
  return x - points[low].x < points[high].x - x ? points[low] : points[high];
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Leaves out the ticks at the ends of the data, which lie too near to their neighbours. */
function evenTicks(scale) {
  const { ticks } = scale;
  if (ticks.length < 4) return;
  const step = ticks[2].value - ticks[1].value;
  const even = ({ value }) => Math.abs(value / step - Math.round(value / step)) < 1e-6;
  scale.ticks = ticks.filter(even);
}

/** `#rrggbb` or any other colour, made translucent. */
function faded(value, share) {
  return `color-mix(in srgb, ${value} ${share * 100}%, transparent)`;
}

/** The colours of the page's theme, as the canvas needs them. */
function palette() {
  const probe = document.createElement('span');
  probe.hidden = true;
  document.body.append(probe);
  const names = ['train', 'val', 'third', 'grid', 'soft', 'card'];
  const colours = names.map((name) => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color || colour(`--${name}`)];
  });
  probe.remove();
  return Object.fromEntries(colours);
}

export class Charts {
  /** `root` holds the figures; `onZoom(zoomed)` tells whether a part of the steps is shown. */
  constructor(root, onZoom) {
    this.data = {};
    this.smoothing = 0.6;
    this.logarithmic = false;
    this.onZoom = onZoom;
    this.axes = { step: { cursor: null, zoom: null }, time: { cursor: null, zoom: null } };
    this.colours = palette();
    this.charts = Array.from(root.querySelectorAll('[data-chart]'), (figure) =>
      this.build(figure, CHARTS[figure.dataset.chart]),
    );
  }

  build(figure, spec) {
    const caption = document.createElement('figcaption');
    const title = document.createElement('h2');
    title.textContent = spec.title;
    const at = document.createElement('span');
    at.className = 'readout at';
    const readouts = spec.series.map((series) => {
      const readout = document.createElement('span');
      readout.className = 'readout';
      readout.dataset.colour = series.colour;
      readout.dataset.series = series.key;
      return readout;
    });
    caption.append(title, at, ...readouts);
    const plot = document.createElement('div');
    plot.className = 'plot';
    const canvas = document.createElement('canvas');
    canvas.tabIndex = 0;
    canvas.setAttribute('role', 'img');
    const empty = document.createElement('p');
    empty.className = 'empty';
    empty.textContent = spec.axis === 'time' ? 'No GPU is seen here.' : 'No values yet.';
    plot.append(canvas, empty);
    figure.append(caption, plot);
    const it = { spec, canvas, at, readouts, empty, axis: this.axes[spec.axis], selection: null };
    it.chart = new Chart(canvas, this.options(it));
    this.listen(it);
    return it;
  }

  options(it) {
    return {
      type: 'line',
      data: { datasets: [] },
      options: {
        animation: false,
        parsing: false,
        normalized: true,
        responsive: true,
        maintainAspectRatio: false,
        events: [],
        layout: { padding: { top: 4, right: 4 } },
        plugins: { legend: { display: false }, tooltip: { enabled: false } },
        elements: { point: { radius: 0 }, line: { borderWidth: 1.75, tension: 0 } },
        scales: this.scales(it.spec, it.axis),
      },
      plugins: [{ id: 'cursor', afterDatasetsDraw: (chart) => this.drawCursor(it, chart) }],
    };
  }

  scales(spec, axis) {
    const ticks = { color: this.colours.soft, font: { size: 11 }, maxRotation: 0 };
    const grid = { color: this.colours.grid, tickLength: 0 };
    const border = { display: false };
    const write = spec.series[0].writeTick ?? format.tick;
    const time = spec.axis === 'time';
    const scales = {
      x: {
        type: 'linear',
        min: axis.zoom?.min,
        max: axis.zoom?.max,
        bounds: 'data',
        border,
        grid: { ...grid, display: false },
        afterBuildTicks: evenTicks,
        ticks: {
          ...ticks,
          maxTicksLimit: time ? 4 : 7,
          precision: 0,
          callback: (x) => (time ? format.clock(x) : format.tick(x)),
        },
      },
      y: {
        type: spec.logarithmic && this.logarithmic ? 'logarithmic' : 'linear',
        border,
        grid,
        min: spec.share ? 0 : undefined,
        max: spec.share ? 100 : undefined,
        beginAtZero: spec.fromZero,
        ticks: { ...ticks, maxTicksLimit: spec.logarithmic ? 9 : 6, callback: (y) => write(y) },
      },
    };
    if (spec.second) {
      const second = spec.series.find((series) => series.second);
      scales.y2 = {
        position: 'right',
        border,
        grid: { display: false },
        display: this.data[second.key]?.length > 0,
        beginAtZero: true,
        ticks: { ...ticks, maxTicksLimit: 5, callback: (y) => second.writeTick(y) },
      };
    }
    return scales;
  }

  /** Gives all data anew: {key: [{x, y, low?, high?}]}, each sorted by x. */
  set(data) {
    this.data = data;
    this.redraw();
  }

  setSmoothing(weight) {
    this.smoothing = weight;
    this.redraw();
  }

  setLogarithmic(yes) {
    this.logarithmic = yes;
    this.redraw();
  }

  /** After a change of the theme. */
  repaint() {
    this.colours = palette();
    this.redraw();
  }

  redraw() {
    for (const it of this.charts) {
      const sets = it.spec.series.flatMap((series) => this.datasets(series));
      it.chart.data.datasets = sets;
      it.chart.options.scales = this.scales(it.spec, it.axis);
      it.chart.update('none');
      it.empty.hidden = sets.some((set) => set.data.length > 0);
      it.canvas.classList.toggle('unseen', !it.empty.hidden);
      this.read(it);
    }
  }

  /** A series as it is drawn: what lies between smallest and largest, the raw line, the mean. */
  datasets(series) {
    const points = this.data[series.key] ?? [];
    const line = this.colours[series.colour];
    const base = { yAxisID: series.second ? 'y2' : 'y', borderColor: line, pointRadius: 0 };
    const smooth = series.smooth && this.smoothing > 0 && points.length > 2;
    const sets = [];
    if (points.some(({ low, high }) => high > low)) {
      const bound = (name) => points.map((point) => ({ x: point.x, y: point[name] ?? point.y }));
      const none = { ...base, borderWidth: 0 };
      sets.push({ ...none, data: bound('low') });
      sets.push({ ...none, data: bound('high'), fill: '-1', backgroundColor: faded(line, 0.13) });
    }
    if (smooth) sets.push({ ...base, data: points, borderColor: faded(line, 0.3), borderWidth: 1 });
    const radius = series.dots && points.length < 60 ? 2.5 : points.length === 1 ? 3 : 0;
    sets.push({
      ...base,
      data: smooth ? smoothed(points, this.smoothing) : points,
      pointRadius: radius,
      pointBackgroundColor: line,
    });
    return sets;
  }

  /** Writes the values under the cursor, or the newest ones. */
  read(it) {
    const { cursor } = it.axis;
    let at;
    const texts = it.spec.series.map((series, index) => {
      const points = this.data[series.key] ?? [];
      const point = cursor === null ? points.at(-1) : nearest(points, cursor);
      if (point !== undefined && index === 0) at = point.x;
      const value = point === undefined ? format.DASH : series.write(point.y);
      const text = series.label === '' ? value : `${series.label} ${value}`;
      it.readouts[index].textContent = text;
      it.readouts[index].dataset.value = point === undefined ? '' : String(point.y);
      it.readouts[index].hidden = point === undefined;
      return text;
    });
    const time = it.spec.axis === 'time';
    const where = at === undefined ? '' : time ? format.clock(at) : `step ${format.count(at)}`;
    it.at.textContent = cursor === null ? '' : where;
    const all = [it.spec.title, where, ...texts].filter((text) => text !== '');
    it.canvas.setAttribute('aria-label', all.join(', '));
  }

  drawCursor(it, chart) {
    const { ctx, chartArea: area, scales } = chart;
    ctx.save();
    if (it.selection !== null) {
      const [from, to] = it.selection;
      ctx.fillStyle = faded(this.colours.train, 0.18);
      ctx.fillRect(Math.min(from, to), area.top, Math.abs(to - from), area.bottom - area.top);
    } else if (it.axis.cursor !== null) {
      const x = scales.x.getPixelForValue(it.axis.cursor);
      if (x >= area.left && x <= area.right) {
        ctx.strokeStyle = this.colours.soft;
        ctx.setLineDash([3, 3]);
        ctx.beginPath();
        ctx.moveTo(x, area.top);
        ctx.lineTo(x, area.bottom);
        ctx.stroke();
        this.drawLabel(ctx, area, x, it.at.textContent);
      }
    }
    ctx.restore();
  }

  /** Where the cursor stands, in words, beside its line. */
  drawLabel(ctx, area, x, text) {
    const pad = 6;
    ctx.font = '11px system-ui, sans-serif';
    const width = ctx.measureText(text).width + 2 * pad;
    const left = x + width + pad < area.right ? x + pad : x - width - pad;
    ctx.fillStyle = this.colours.card;
    ctx.globalAlpha = 0.85;
    ctx.fillRect(left, area.top, width, 18);
    ctx.globalAlpha = 1;
    ctx.fillStyle = this.colours.soft;
    ctx.textBaseline = 'middle';
    ctx.fillText(text, left + pad, area.top + 9);
  }

  /** Moves the cursor of an axis and draws the charts on it once in the next frame. */
  point(axis, x) {
    axis.cursor = x;
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = undefined;
      for (const it of this.charts) {
        this.read(it);
        it.chart.draw();
      }
    });
  }

  zoom(axis, range) {
    axis.zoom = range;
    axis.cursor = null;
    this.redraw();
    this.onZoom(this.axes.step.zoom !== null || this.axes.time.zoom !== null);
  }

  resetZoom() {
    this.axes.step.zoom = null;
    this.zoom(this.axes.time, null);
  }

  listen(it) {
    const { canvas, axis } = it;
    const scale = () => it.chart.scales.x;
    const pixel = (event) => {
      const { left, right } = it.chart.chartArea;
      return Math.min(Math.max(event.offsetX, left), right);
    };
    let from = null;
    canvas.addEventListener('pointerdown', (event) => {
      if (event.button !== 0 || event.pointerType === 'touch') return;
      from = pixel(event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener('pointermove', (event) => {
      if (from !== null) it.selection = [from, pixel(event)];
      this.point(axis, scale().getValueForPixel(pixel(event)));
    });
    canvas.addEventListener('pointerup', (event) => {
      const to = pixel(event);
      const range = [from, to].map((x) => scale().getValueForPixel(x)).sort((a, b) => a - b);
      const dragged = from !== null && Math.abs(to - from) >= DRAG_PIXELS_MIN;
      from = null;
      it.selection = null;
      if (dragged) this.zoom(axis, { min: range[0], max: range[1] });
    });
    canvas.addEventListener('pointercancel', () => {
      from = null;
      it.selection = null;
    });
    canvas.addEventListener('pointerleave', () => {
      if (from === null) this.point(axis, null);
    });
    canvas.addEventListener('blur', () => this.point(axis, null));
    canvas.addEventListener('dblclick', () => this.zoom(axis, null));
    canvas.addEventListener('keydown', (event) => {
      if (this.key(it, event.key, event.shiftKey)) event.preventDefault();
    });
  }

  /** What the mouse does, by the keyboard. Whether the key meant something. */
  key(it, key, far) {
    const { axis, spec } = it;
    const { min, max } = it.chart.scales.x;
    const points = this.data[spec.series[0].key] ?? [];
    if (points.length === 0) return false;
    const inside = points.filter(({ x }) => x >= min && x <= max);
    const here = axis.cursor ?? inside.at(-1)?.x ?? max;
    if (key === 'ArrowLeft' || key === 'ArrowRight') {
      const forward = key === 'ArrowRight' ? 1 : -1;
      const index = inside.indexOf(nearest(inside, here)) + forward * (far ? 10 : 1);
      const next = inside[Math.min(Math.max(index, 0), inside.length - 1)];
      if (next) this.point(axis, next.x);
    } else if (key === '+' || key === '=' || key === '-') {
      const factor = key === '-' ? 2 : 0.5;
      const range = { min: here - (here - min) * factor, max: here + (max - here) * factor };
      const whole = range.min <= points[0].x && range.max >= points.at(-1).x;
      this.zoom(axis, whole ? null : range);
      axis.cursor = here;
    } else if (key === '0' || key === 'Escape') {
      this.zoom(axis, null);
    } else {
      return false;
    }
    return true;
  }
}
