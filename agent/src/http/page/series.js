// The points of the curves: what the agent has kept, and what came since it was asked.

import { series as ask } from './api.js';

const POINTS_MAX = 600;
/** Points that the page itself gathers between two questions, and of the GPU. */
const LIVE_MAX = 3_600;

/** What a status says of itself that is a series, too. A validation loss is not among them: it
 * belongs to the step that it was measured at, and the agent knows which. */
const LIVE = ['loss', 'lr', 'grad_norm', 'tokens_per_second', 'mfu'];

/** {name: points} of all series that the agent has. */
export async function readSeries() {
  const series = await ask(POINTS_MAX);
  return Object.fromEntries(series.map(({ name, points }) => [name, points.map(point)]));
}

/** A stretch of steps as a point: its last value, between its smallest and its largest. */
function point({ step, last, min, max }) {
  return { x: step, y: last, low: min, high: max };
}

export class Series {
  constructor() {
    this.kept = {};
    this.fresh = {};
    this.dirty = false;
  }

  /** New answers; what is older than their ends is in them. */
  replace(read) {
    Object.assign(this.kept, read);
    for (const key of Object.keys(read)) {
      const end = read[key].at(-1)?.x ?? -1;
      this.fresh[key] = (this.fresh[key] ?? []).filter(({ x }) => x > end);
    }
    this.dirty = true;
  }

  /** The newest values of a status. */
  live(status) {
    const it = status.progress ?? {};
    if (it.step !== undefined) {
      for (const key of LIVE) this.push(key, it.step, it[key]);
    }
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const gpus = status.gpu ?? [];
    const busy = gpus.map((gpu) => gpu.util_ratio).filter(Number.isFinite);
    const used = gpus.map((gpu) => gpu.mem_used_bytes / gpu.mem_total_bytes);
    const full = used.filter(Number.isFinite);
    const now = Date.now();
    this.push('gpu_util', now, busy.length > 0 ? mean(busy) * 100 : undefined);
    this.push('gpu_memory', now, full.length > 0 ? mean(full) * 100 : undefined);
  }

  push(key, x, y) {
    if (!Number.isFinite(y)) return;
    const fresh = (this.fresh[key] ??= []);
    const last = fresh.at(-1) ?? this.kept[key]?.at(-1);
    // A restart goes back to a checkpoint; the agent's next answer shows what is valid then.
    if (last !== undefined && x <= last.x) return;
    fresh.push({ x, y });
    if (fresh.length > LIVE_MAX) fresh.splice(0, fresh.length - LIVE_MAX);
    this.dirty = true;
  }

  /** Points of the loss that the agent has told. */
  length() {
    return this.kept.loss?.length ?? 0;
  }

  changed() {
    return this.dirty;
  }

  all() {
    this.dirty = false;
    const keys = new Set([...Object.keys(this.kept), ...Object.keys(this.fresh)]);
    return Object.fromEntries(
      Array.from(keys, (key) => [key, [...(this.kept[key] ?? []), ...(this.fresh[key] ?? [])]]),
    );
  }
}
