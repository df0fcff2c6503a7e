// The live log. Lines are hostile input: they become text nodes and nothing else. Memory and the
// number of rows are bounded, and rows are drawn at most once a frame, however fast output comes.

import * as format from './format.js';

const LINES_MAX = 10_000;
const ROWS_MAX = 1_500;
/** Lines that wait while the log is paused; older ones are dropped, and that is said. */
const WAITING_MAX = 20_000;

export class Log {
  /** `search(text)` asks the agent for matching lines of the whole log. */
  constructor(elements, search) {
    Object.assign(this, elements);
    this.lines = [];
    this.waiting = [];
    this.newest = -1;
    this.total = 0;
    this.dropped = 0;
    this.paused = false;
    this.follows = true;
    this.found = null;
    this.needle = '';
    this.fresh = [];
    this.search = search;
    this.listen();
  }

  listen() {
    this.filter.addEventListener('input', () => {
      this.needle = this.filter.value;
      this.found = null;
      this.wholeLog.hidden = this.needle === '';
      this.rebuild();
    });
    this.form.addEventListener('submit', async (event) => {
      event.preventDefault();
      if (this.needle === '') return;
      const found = await this.search(this.needle);
      if (found) {
        this.found = found;
        this.rebuild();
      }
    });
    this.pause.addEventListener('click', () => this.setPaused(!this.paused));
    this.box.addEventListener('scroll', () => {
      const below = this.box.scrollHeight - this.box.clientHeight - this.box.scrollTop;
      this.follows = below < 24;
      this.newestButton.hidden = this.follows;
    });
    this.newestButton.addEventListener('click', () => this.toEnd());
  }

  setPaused(yes) {
    this.paused = yes;
    this.pause.setAttribute('aria-pressed', String(yes));
    this.pause.textContent = yes ? 'Resume' : 'Pause';
    if (!yes) {
      const lines = this.waiting;
      this.waiting = [];
      this.take(lines);
    }
    this.say();
  }

  /** Takes lines in; those that were seen already are left out. */
  add(lines) {
    const fresh = lines.filter((line) => {
      const isNew = line.seq === undefined || line.seq > this.newest;
      if (isNew && line.seq !== undefined) this.newest = line.seq;
      return isNew;
    });
    if (fresh.length === 0) return;
    if (this.paused) {
      this.waiting.push(...fresh);
      const over = this.waiting.length - WAITING_MAX;
      if (over > 0) {
        this.waiting.splice(0, over);
        this.dropped += over;
      }
      this.say();
    } else {
      this.take(fresh);
    }
  }

  /** Says that output is missing here. */
  gap(text) {
    this.add([{ source: 'gap', line: text }]);
  }

  take(lines) {
    if (this.dropped > 0) {
      lines.unshift({ source: 'gap', line: `${this.dropped} lines were left out while paused` });
      this.dropped = 0;
    }
    this.total += lines.length;
    this.lines.push(...lines);
    if (this.lines.length > LINES_MAX) this.lines.splice(0, this.lines.length - LINES_MAX);
    this.fresh.push(...lines);
    if (this.fresh.length > ROWS_MAX) this.fresh.splice(0, this.fresh.length - ROWS_MAX);
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = undefined;
      const rows = this.fresh.filter((line) => this.matches(line));
      this.fresh = [];
      if (this.found === null) this.append(rows);
      this.say();
    });
  }

  matches({ line }) {
    return this.needle === '' || line.toLowerCase().includes(this.needle.toLowerCase());
  }

  rebuild() {
    const lines = this.found ?? this.lines.filter((line) => this.matches(line));
    this.fresh = [];
    this.box.replaceChildren();
    this.append(lines.slice(-ROWS_MAX));
    this.say();
    if (this.found === null) this.toEnd();
  }

  append(lines) {
    if (lines.length === 0) return;
    const rows = document.createDocumentFragment();
    for (const line of lines) rows.append(this.row(line));
    this.box.append(rows);
    while (this.box.childElementCount > ROWS_MAX) this.box.firstElementChild.remove();
    if (this.follows && this.found === null) this.toEnd();
  }

  row({ seq, ts, source, line, gap }) {
    const row = document.createElement('div');
    row.className = 'line';
    row.dataset.source = gap === undefined ? (source ?? '') : 'gap';
    if (seq !== undefined) row.dataset.seq = seq;
    if (ts !== undefined) {
      const clock = document.createElement('time');
      clock.dateTime = ts;
      clock.textContent = format.clock(ts);
      row.append(clock);
    }
    row.append(...this.marked(line));
    return row;
  }

  /** The line's text, with what was searched for marked. */
  marked(line) {
    if (this.needle === '') return [line];
    const where = line.toLowerCase().indexOf(this.needle.toLowerCase());
    if (where < 0) return [line];
    const mark = document.createElement('mark');
    mark.textContent = line.slice(where, where + this.needle.length);
    return [line.slice(0, where), mark, line.slice(where + this.needle.length)];
  }

  toEnd() {
    this.follows = true;
    this.newestButton.hidden = true;
    this.box.scrollTop = this.box.scrollHeight;
  }

  say() {
    const lines = (number) => `${format.count(number)} ${number === 1 ? 'line' : 'lines'}`;
    let text = lines(this.total);
    if (this.found !== null) text = `${lines(this.found.length)} found in the whole log`;
    else if (this.needle !== '') text = `${lines(this.box.childElementCount)} match`;
    if (this.paused) text += ` · paused, ${lines(this.waiting.length + this.dropped)} waiting`;
    this.counter.textContent = text;
  }
}
