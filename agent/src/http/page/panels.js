// What of the status and the lists is text: header, progress, cost, risk, deadlines, checkpoints,
// history. Everything is written by textContent; `data-value` keeps the number as the API gave it.

import * as format from './format.js';

/** Rows of the history. */
const EVENTS_MAX = 300;

export const byId = (id) => document.getElementById(id);

/** Writes a field, and its value as it came. */
function field(name, text, value) {
  const element = document.querySelector(`[data-field="${name}"]`);
  element.textContent = text;
  if (value === undefined) delete element.dataset.value;
  else element.dataset.value = String(value);
  return element;
}

function element(tag, text, data = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  Object.assign(made.dataset, data);
  return made;
}

/** Seconds since an RFC 3339 time, by the agent's own clock as far as it is known. */
export function since(status, text) {
  const from = Date.parse(text ?? '');
  const to = Date.parse(status.timestamps?.ended ?? status.timestamps?.updated ?? '');
  return (to - from) / 1000;
}

export function isOver(status) {
  return status.timestamps?.ended !== undefined || ['completed', 'failed'].includes(status.status);
}

export function kindOf(status) {
  const kinds = { completed: 'good', failed: 'bad', running: 'good', queued: 'warn' };
  if (status.phase === 'stalled') return 'bad';
  if (status.phase === 'draining') return 'warn';
  return kinds[status.status] ?? '';
}

/** `age` is how many seconds ago the status was received, `progressAge` its newest progress. */
export function showStatus(status, age, progressAge) {
  showHeader(status, age);
  showProgress(status, progressAge);
  showCost(status);
  showRisk(status, age);
}

function showHeader(status, age) {
  field('id', status.id, status.id);
  field('status', status.status, status.status).dataset.kind = kindOf(status);
  const phase = status.phase === status.status ? '' : format.words(status.phase);
  field('phase', phase, status.phase);
  const { id, region } = status.instance ?? {};
  field('provider', [status.provider, region, id].filter(Boolean).join(' · '), status.provider);
  const gpus = status.gpu ?? [];
  const names = [...new Set(gpus.map((gpu) => gpu.name))];
  const many = gpus.length > 1 ? `${gpus.length} × ` : '';
  field('gpu', gpus.length === 0 ? 'none' : many + names.join(', '), names.join(', '));
  const up = since(status, status.timestamps?.started) + (isOver(status) ? 0 : age);
  field('uptime', format.duration(up));
  field('attempt', format.count(status.attempt), status.attempt);
  field('preemptions', format.count(status.preemptions), status.preemptions);
  field('restarts', format.count(status.restarts), status.restarts);
  const lease = status.lease;
  const left = isOver(status) ? undefined : lease?.valid_for_seconds;
  const valid = left === undefined ? '' : `, valid ${format.duration(Math.max(0, left - age))}`;
  const risk = lease?.at_risk ? ', at risk' : '';
  field('lease', lease ? `epoch ${lease.epoch}${valid}${risk}` : 'none', lease?.epoch);
  document.title = [
    status.progress?.percent === undefined ? '' : `${Math.floor(status.progress.percent)} %`,
    status.status,
    status.id,
  ].filter(Boolean).join(' · ');
}

function showProgress(status, age) {
  const it = status.progress ?? {};
  field('progress.percent', format.percent(it.percent), it.percent);
  const bar = byId('bar');
  bar.value = it.percent ?? 0;
  const left = it.eta_seconds === undefined ? undefined : Math.max(0, it.eta_seconds - age);
  let eta = '';
  if (isOver(status)) {
    eta = `ended after ${format.duration(since(status, status.timestamps.started))}`;
  } else if (left !== undefined) {
    const end = format.clock(Date.now() + left * 1000).slice(0, 5);
    eta = `${format.duration(left)} left, until about ${end}`;
  }
  field('progress.eta_seconds', eta, it.eta_seconds);
  const total = it.total_steps;
  field('progress.step', format.count(it.step), it.step);
  byId('total-steps').textContent = total === undefined ? '' : `of ${format.count(total)}`;
  const loss = field('progress.loss', it.non_finite ? 'not finite' : format.loss(it.loss), it.loss);
  loss.toggleAttribute('data-alarm', Boolean(it.non_finite));
  field('progress.val_loss', format.loss(it.val_loss), it.val_loss);
  field('progress.tokens', format.short(it.tokens), it.tokens);
  field('progress.tokens_per_second', format.short(it.tokens_per_second), it.tokens_per_second);
  field('progress.mfu', format.percent(it.mfu === undefined ? undefined : it.mfu * 100), it.mfu);
  for (const name of ['steps_per_second', 'lr', 'grad_norm']) {
    field(`progress.${name}`, format.figure(it[name]), it[name]);
  }
  byId('epoch-stat').hidden = it.epoch === undefined;
  const epochs = it.total_epochs === undefined ? '' : ` / ${format.figure(it.total_epochs)}`;
  field('progress.epoch', format.figure(it.epoch) + epochs, it.epoch);
  showTrainerAge(status, it.age_seconds === undefined ? undefined : it.age_seconds + age);
}

/** How long the trainer has been silent, once that is worth a word. */
function showTrainerAge(status, silent) {
  const note = byId('trainer-age');
  const limit = status.limits?.stall_seconds;
  const quiet = silent === undefined || silent < 20 || isOver(status);
  const rest = limit === undefined ? '' : `; it is ended after ${format.duration(limit)}`;
  note.textContent = quiet ? '' : `The trainer last moved ${format.duration(silent)} ago${rest}.`;
  note.dataset.kind = silent > (limit ?? 600) / 2 ? 'warn' : '';
}

function showCost(status) {
  const cost = status.cost ?? {};
  const { budget } = cost;
  const spent = status.cost_so_far;
  const priced = cost.price_per_hour !== undefined;
  field('cost_so_far', priced || spent > 0 ? format.dollars(spent) : format.DASH, spent);
  byId('cost-of').textContent = budget === undefined ? '' : `of ${format.dollars(budget)}`;
  const total = status.estimated_total;
  field('estimated_total', format.dollars(total), total);
  field('cost.remaining', budget === undefined ? 'no budget' : format.dollars(cost.remaining),
    cost.remaining);
  const source = { spec: 'as told', provider: "provider's", table: 'from a table' };
  const where = source[cost.price_source] ?? cost.price_source;
  const disk = cost.storage_per_hour > 0 ? ` + ${format.dollars(cost.storage_per_hour)}` : '';
  const hour = `${format.dollars(cost.price_per_hour)}${disk}, ${where}`;
  const price = priced ? hour : 'not known';
  field('cost.price_per_hour', price, cost.price_per_hour);
  const whole = budget ?? Math.max(total ?? 0, spent ?? 0);
  const share = (value) => (whole > 0 ? Math.min(100, ((value ?? 0) * 100) / whole) : 0);
  byId('cost-spent').setAttribute('width', share(spent).toFixed(2));
  byId('cost-projected').setAttribute('width', share(total).toFixed(2));
  const over = budget !== undefined && total !== undefined && total > budget && !isOver(status);
  const gone = budget !== undefined && spent >= budget;
  const meter = byId('cost-meter');
  meter.dataset.kind = gone ? 'bad' : over ? 'warn' : '';
  meter.setAttribute('aria-label', whole > 0
    ? `${share(spent).toFixed(0)} % of the ${budget === undefined ? 'estimate' : 'budget'} spent`
    : 'No price is known');
  const note = byId('cost-note');
  note.dataset.kind = over || gone ? 'warn' : '';
  const storage = [
    cost.storage > 0 ? `${format.dollars(cost.storage)} of it storage` : '',
    cost.former > 0 ? `${format.dollars(cost.former)} by former machines` : '',
  ].filter(Boolean).join(', ');
  const warning = gone ? 'The budget is spent.'
    : over ? 'At this pace the budget ends before the run does.' : storage;
  note.textContent = warning;
}

function showRisk(status, age) {
  const it = status.checkpoint ?? {};
  field('checkpoint.steps_at_risk', format.count(it.steps_at_risk), it.steps_at_risk);
  const pace = status.progress?.steps_per_second;
  const parts = [];
  if (it.steps_at_risk > 0 && pace > 0) {
    const lost = it.steps_at_risk / pace;
    const price = status.cost?.price_per_hour;
    const worth = price === undefined ? '' : ` and ${format.dollars((lost / 3600) * price)}`;
    parts.push(`${format.duration(lost)} of training${worth}`);
  }
  const published = it.age_seconds === undefined ? '' :
    `, ${format.duration(it.age_seconds + (isOver(status) ? 0 : age))} ago`;
  parts.push(it.step === undefined ? 'nothing published yet'
    : `step ${format.count(it.step)} published${published}`);
  if (it.uploading_step !== undefined) parts.push(`uploading ${format.count(it.uploading_step)}`);
  byId('risk-note').textContent = parts.join(' · ');
  showDeadlines(status, age);
}

function showDeadlines(status, age) {
  const { deadlines, next_deadline: next } = status.limits ?? {};
  const all = deadlines?.length > 0 ? deadlines : next ? [next] : [];
  const names = {
    wall: 'whole run', idle: 'idle', stall: 'no progress', budget: 'budget spent',
    keepalive: 'keep-alive', provider: "provider's end", start: 'start of training',
  };
  const rows = (isOver(status) ? [] : all).map((deadline) => {
    const left = deadline.in_seconds - age;
    const row = element('li', undefined, { timer: deadline.timer });
    const clock = element('span', format.countdown(left), { kind: left < 300 ? 'warn' : '' });
    clock.className = 'countdown';
    row.append(element('span', names[deadline.timer] ?? format.words(deadline.timer)), clock);
    return row;
  });
  if (rows.length === 0) {
    const row = element('li', isOver(status) ? 'none, the run has ended' : 'none');
    row.className = 'note';
    rows.push(row);
  }
  byId('deadlines').replaceChildren(...rows);
}

/** `published` is the newest step that the status knows of; the list may be older than that. */
export function showCheckpoints(known, published) {
  const isNews = published !== undefined && !known.some(({ step }) => step >= published);
  const list = isNews ? [{ step: published }, ...known] : known;
  const rows = list.toSorted((a, b) => b.step - a.step).map((it) => {
    const row = element('tr', undefined, { step: it.step });
    const files = element('td');
    files.className = 'files';
    files.append(...fileLinks(it.files));
    row.append(
      element('td', format.count(it.step)),
      element('td', format.loss(it.val_loss ?? it.loss)),
      element('td', format.bytes(it.bytes)),
      element('td', it.created === undefined ? format.DASH : format.moment(it.created)),
      files,
    );
    return row;
  });
  byId('checkpoints').replaceChildren(...rows);
  byId('checkpoints-empty').hidden = rows.length > 0;
  const bytes = list.reduce((sum, it) => sum + (it.bytes ?? 0), 0);
  byId('checkpoints-note').textContent =
    rows.length === 0 ? '' : `${rows.length} in the store, ${format.bytes(bytes)}`;
}

/** The files of a checkpoint: links where the store gives some, digests on hover. */
function fileLinks(files) {
  if (files === undefined) return [format.DASH];
  const about = ({ bytes, sha256 }) => `${format.bytes(bytes)}, SHA-256 ${sha256}`;
  const links = files.filter(({ url }) => /^https?:\/\//.test(url ?? '')).map((file) => {
    const link = element('a', file.name);
    link.href = file.url;
    link.rel = 'noreferrer';
    link.title = about(file);
    return link;
  });
  if (links.length > 0) return links;
  const number = element('span', `${files.length} files`);
  number.title = files.map((file) => `${file.name}: ${about(file)}`).join('\n');
  return [number];
}

/** Pauses of training that come and go all the time; `all` shows them, too. */
const PAUSES = ['evaluating', 'checkpointing'];

export function showEvents(list, all) {
  let paused = false;
  const shown = list.filter(({ kind, phase, reason }) => {
    if (all || kind !== 'state') return true;
    const back = paused && phase === 'training' && reason === undefined;
    paused = PAUSES.includes(phase) || (paused && back);
    return !PAUSES.includes(phase) && !back;
  });
  const rows = shown.toReversed().slice(0, EVENTS_MAX).map((it) => {
    const row = element('li', undefined, { seq: it.seq, kind: it.level ?? it.kind });
    const time = element('time', format.moment(it.time));
    time.dateTime = it.time;
    const text = element('span');
    const isState = it.kind === 'state';
    if (it.kind !== 'message') {
      text.append(element('b', format.words(isState ? it.phase : it.kind)), ' ');
    }
    const reason = isState && it.reason !== it.phase ? format.words(it.reason) : '';
    const step = it.step === undefined ? '' : `step ${format.count(it.step)}`;
    const message = it.kind === 'checkpoint' ? step : it.message ?? (isState ? step : '');
    text.append([reason, message].filter(Boolean).join(': '));
    row.append(time, text);
    return row;
  });
  byId('events').replaceChildren(...rows);
  byId('events-empty').hidden = rows.length > 0;
}
