// The page's one loop: a stream of events from the agent changes `state`, and `state` is shown.
// What the stream does not carry is asked for when it says that there is more, or now and then.

import * as api from './api.js';
import { Charts } from './charts.js';
import { Controls, toast } from './controls.js';
import * as format from './format.js';
import { Log } from './log.js';
import * as panels from './panels.js';
import { readSeries, Series } from './series.js';
import { Stream } from './stream.js';

const { byId } = panels;
/** Nothing heard for this long means that what is shown may be old. */
const STALE_AFTER_MS = 20_000;
const STATUS_EVERY_MS = 5_000;
const LISTS_EVERY_MS = 20_000;
/** While curves are short the page has them whole. */
const LISTS_EVERY_FIRST_MS = 5_000;
const POINTS_FEW = 200;
/** The agent asks the store for its checkpoints no more often. */
const STORE_EVERY_MS = 11_000;
const LOG_LINES_FIRST = 500;
const HISTORY_MAX = 2_000;

const state = {
  status: undefined,
  /** Page's clock, in ms, when `status` came. */
  statusAt: 0,
  /** The same of its progress, which comes more often, and of the last question. */
  progressAt: 0,
  askedAt: 0,
  /** When anything was heard of the agent. */
  heardAt: performance.now(),
  connected: false,
  lost: '',
  nextTryAt: 0,
  ended: false,
  locked: false,
};

const charts = new Charts(byId('main'), (zoomed) => (byId('zoom-reset').hidden = !zoomed));
const series = new Series();
const controls = new Controls(() => state.status, restart);
const log = new Log(
  {
    box: byId('log'),
    filter: byId('log-filter'),
    form: byId('log-search'),
    wholeLog: byId('log-all'),
    pause: byId('log-pause'),
    counter: byId('log-count'),
    newestButton: byId('log-follow'),
  },
  searchLog,
);
let stream;

function takeStatus(status) {
  if (status?.id === undefined || status.status === undefined) return;
  const before = state.status;
  // A late answer is older than what came by the stream meanwhile.
  const same = before?.timestamps?.started === status.timestamps?.started;
  if (same && before.rev > status.rev) return;
  state.status = status;
  state.statusAt = performance.now();
  state.progressAt = state.statusAt;
  state.ended = panels.isOver(status);
  series.live(status);
  controls.show();
  controls.learn();
  show();
  const answer = status.control?.answers?.at(-1);
  if (before !== undefined && before.control?.last !== status.control?.last && answer?.refused) {
    toast(`${format.words(answer.kind)} was refused: ${answer.refused}`, 'bad');
  }
  if (before?.phase !== status.phase || before?.checkpoint?.step !== status.checkpoint?.step) {
    refreshLists();
  }
}

function show() {
  const { status } = state;
  if (status !== undefined) {
    const age = (then) => (state.ended ? 0 : (performance.now() - then) / 1000);
    panels.showStatus(status, age(state.statusAt), age(state.progressAt));
  }
  showLive();
  showBanner();
}

function showLive() {
  const silent = performance.now() - state.heardAt;
  const stale = !state.ended && (silent > STALE_AFTER_MS || !state.connected);
  const live = byId('live');
  const kind = state.ended ? 'ended' : stale ? (state.status ? 'stale' : 'connecting') : 'live';
  live.dataset.state = kind;
  const ago = format.duration(silent / 1000);
  const texts = { ended: 'ended', live: 'live', connecting: 'connecting', stale: `${ago} old` };
  byId('live-text').textContent = texts[kind];
}

function banner(kind, title, text, button = '') {
  const box = byId('banner');
  box.hidden = title === '';
  box.dataset.kind = kind;
  // Written only when it changes, so that a screen reader says it once.
  if (byId('banner-title').textContent !== title) byId('banner-title').textContent = title;
  if (byId('banner-text').textContent !== text) byId('banner-text').textContent = text;
  byId('banner-button').hidden = button === '';
  byId('banner-button').textContent = button;
}

function showBanner() {
  const { status } = state;
  const silent = performance.now() - state.heardAt;
  if (state.locked) {
    banner('warn', 'A token is needed.', 'The agent shows this job to those who have its token.');
  } else if (state.ended) {
    showEnd(status);
  } else if (!state.connected && (state.lost !== '' || silent > STALE_AFTER_MS)) {
    const wait = Math.max(0, Math.ceil((state.nextTryAt - performance.now()) / 1000));
    const next = wait > 0 ? `Next try in ${wait} s.` : 'Trying…';
    const since = `What is shown is ${format.duration(silent / 1000)} old.`;
    banner('warn', 'No connection to the agent:', `${state.lost}. ${since} ${next}`, 'Try now');
  } else if (silent > STALE_AFTER_MS) {
    const old = format.duration(silent / 1000);
    banner('warn', 'The agent is silent.', `What is shown is ${old} old.`);
  } else if (status?.progress?.non_finite) {
    banner('bad', 'The loss is not a finite number.', 'The run has diverged or is about to.');
  } else if (status?.phase === 'stalled') {
    banner('bad', 'The trainer makes no progress.', 'It is being ended and started again.');
  } else if (status?.phase === 'draining') {
    banner('warn', 'The run is ending:', status.message ?? format.words(status.reason));
  } else if (status?.lease?.at_risk) {
    banner('warn', 'The lease is at risk:', 'the store has not answered for a while.');
  } else {
    banner('', '', '');
  }
}

function showEnd(status) {
  const titles = { completed: 'The run is complete.', failed: 'The run has failed:' };
  const title = titles[status.status] ?? 'The run has ended:';
  const text = status.status === 'completed' ? '' : status.message ?? format.words(status.reason);
  const hints = [];
  if (status.status !== 'completed') {
    const step = status.checkpoint?.step;
    const from = step === undefined ? '' : ` from step ${format.count(step)}`;
    if (status.resumable) hints.push(`It can be resumed${from}.`);
    if (status.retryable) hints.push('Another try may succeed.');
  }
  const sentence = text === '' ? '' : `${text}.`;
  const note = 'This is its last state; the machine may be gone.';
  banner(panels.kindOf(status), title, [sentence, ...hints, note].join(' ').trim(),
    'Look again');
}

/** A token came or went: everything is asked for again, as whoever the reader is now. */
function restart() {
  stream?.close();
  state.locked = false;
  start();
}

let starts = 0;

function start() {
  starts += 1;
  const own = starts;
  refreshStatus();
  refreshLists();
  // Not if it was started again meanwhile: that one connects.
  firstLog().finally(() => {
    if (own === starts) connect();
  });
}

async function firstLog() {
  try {
    const page = await api.logs({ tail: LOG_LINES_FIRST });
    log.add(page.lines ?? []);
  } catch (problem) {
    refused(problem);
  }
}

function connect() {
  if (state.locked) return;
  stream = new Stream(() => api.streamUrl(log.newest >= 0 ? log.newest : undefined),
    api.authorization, {
      open() {
        state.connected = true;
        state.lost = '';
        heard();
        refreshStatus();
        refreshLists();
      },
      heard,
      event: takeEvent,
      lost(why, delay) {
        state.connected = false;
        if (state.ended) {
          stream.close();
          return;
        }
        state.lost = why;
        state.nextTryAt = performance.now() + delay;
        show();
      },
      refused,
    });
}

function heard() {
  state.heardAt = performance.now();
}

function takeEvent(name, data) {
  if (name === 'log') log.add([data]);
  else if (name === 'gap') log.gap(gapText(data));
  else if (name === 'status') takeStatus(data.status === undefined ? undefined : data);
  else if (name === 'progress') takeProgress(data);
  else if (name === 'checkpoint') refreshLists();
  else if (name === 'end') refreshStatus().then(refreshLists);
}

/** Cursors count on over the attempts, so their difference is a number of lines within one only. */
function gapText({ from, to, s3_key: key }) {
  const missing = to - from - 1;
  const what = missing > 0 && missing < 2 ** 31 ? `${format.count(missing)} lines` : 'lines';
  return `— ${what} are not in memory any more; the store has them at ${key} —`;
}

function takeProgress(data) {
  if (state.status === undefined) return;
  const { checkpoint } = state.status;
  const risk = Math.max(0, (data.step ?? 0) - (checkpoint?.step ?? 0));
  state.status = {
    ...state.status,
    progress: data,
    checkpoint: { ...checkpoint, steps_at_risk: risk },
  };
  state.progressAt = performance.now();
  series.live(state.status);
  show();
}

/** The agent wants a token, or another one. */
function refused(problem) {
  if (problem.status !== 401 && problem.status !== 403) return;
  // An answer that comes after a token did, to a question before it.
  if (!api.isOfNow(problem)) return;
  state.locked = true;
  show();
  controls.askToken('The agent shows this job to those who have its token. It stays in this ' +
    "page's memory and is gone when the page is closed or loaded again.");
}

async function refreshStatus() {
  state.askedAt = performance.now();
  try {
    const status = await api.status();
    heard();
    takeStatus(status);
  } catch (problem) {
    refused(problem);
  }
}

const history = { agent: undefined, list: [] };
let checkpoints = [];
let listsAt = 0;
let listsRunning = false;

/** Checkpoints, history and curves; never two rounds at once. */
async function refreshLists() {
  if (listsRunning || state.locked) return;
  listsRunning = true;
  listsAt = performance.now();
  const tries = [
    refreshCheckpoints(),
    refreshHistory(),
    readSeries().then((read) => series.replace(read)),
  ];
  await Promise.allSettled(tries);
  charts.set(series.all());
  listsRunning = false;
}

async function refreshCheckpoints() {
  try {
    checkpoints = await api.checkpoints();
  } finally {
    panels.showCheckpoints(checkpoints, state.status?.checkpoint?.step);
  }
}

/** What happened since the last question. A restarted agent counts from the beginning again. */
async function refreshHistory() {
  const agent = state.status?.timestamps?.started;
  if (history.agent !== agent) Object.assign(history, { agent, list: [] });
  try {
    for (;;) {
      const page = await api.events(history.list.at(-1)?.seq);
      history.list.push(...page.events);
      if (!page.has_more || page.events.length === 0) break;
    }
  } finally {
    if (state.ended) history.list.push(...lastEvent());
    history.list.splice(0, Math.max(0, history.list.length - HISTORY_MAX));
    panels.showEvents(history.list, byId('events-all').checked);
  }
}

/** The end, as the status tells it, for an agent that was gone before it could be asked. */
function lastEvent() {
  const { phase, reason, message, timestamps } = state.status;
  if (history.list.findLast(({ kind }) => kind === 'state')?.phase === phase) return [];
  const seq = history.list.at(-1)?.seq;
  return [{ seq, kind: 'state', time: timestamps.updated, phase, reason, message }];
}

async function searchLog(text) {
  try {
    const page = await api.logs({ grep: text, limit: 1000 });
    return page.lines ?? [];
  } catch (problem) {
    toast(`The log cannot be searched: ${problem.message}`, 'bad');
    return undefined;
  }
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
  byId('do-theme').setAttribute('aria-label', `Switch to ${dark ? 'light' : 'dark'} colours`);
  charts.repaint();
}

const prefersDark = matchMedia('(prefers-color-scheme: dark)');
const isDark = () => {
  const { theme } = document.documentElement.dataset;
  return theme === undefined ? prefersDark.matches : theme === 'dark';
};
byId('do-theme').addEventListener('click', () => setTheme(!isDark()));
prefersDark.addEventListener('change', () => charts.repaint());
byId('log-scale').addEventListener('change', (event) => {
  charts.setLogarithmic(event.target.checked);
});
byId('smoothing').addEventListener('input', (event) => {
  byId('smoothing-value').textContent = Number(event.target.value).toFixed(2);
  charts.setSmoothing(Number(event.target.value));
});
byId('events-all').addEventListener('change', (event) => {
  panels.showEvents(history.list, event.target.checked);
});
byId('zoom-reset').addEventListener('click', () => charts.resetZoom());
byId('banner-button').addEventListener('click', () => {
  if (state.ended) restart();
  else stream?.hurry();
});
addEventListener('online', () => stream?.hurry());
addEventListener('pagehide', () => stream?.close());
addEventListener('pageshow', (event) => {
  if (event.persisted) restart();
});

setInterval(() => {
  show();
  const now = performance.now();
  if (document.hidden || state.locked || !state.connected || state.ended) return;
  if (now - state.askedAt > STATUS_EVERY_MS) refreshStatus();
  const isNews = (checkpoints[0]?.step ?? -1) < (state.status?.checkpoint?.step ?? -1);
  const few = series.length() < POINTS_FEW;
  const every = few ? LISTS_EVERY_FIRST_MS : isNews ? STORE_EVERY_MS : LISTS_EVERY_MS;
  if (now - listsAt > every) refreshLists();
  else if (series.changed()) charts.set(series.all());
}, 1000);

api.version().then(({ name, version }) => {
  byId('version').textContent = `${name} ${version} · `;
}, () => {});
start();
