// The token and what it unlocks: checkpoint now, stop, change limits. Each is asked for twice: by
// its button and in a dialog that says what will happen.

import * as api from './api.js';
import * as format from './format.js';
import { byId, isOver } from './panels.js';

export function toast(text, kind = '') {
  const box = document.createElement('p');
  box.className = 'toast';
  box.dataset.kind = kind;
  box.textContent = text;
  byId('toasts').append(box);
  setTimeout(() => box.remove(), kind === 'bad' ? 12_000 : 6_000);
}

/** Loopback pages and pages by TLS keep a token to themselves. */
const isPrivate = () =>
  location.protocol === 'https:' || /^(localhost|127\.|\[::1\])/.test(location.hostname);

export class Controls {
  /** `status()` gives the newest status, `changed()` is called when the token is another. */
  constructor(status, changed) {
    this.status = status;
    this.changed = changed;
    this.unlocked = false;
    this.learned = false;
    this.tokenDialog();
    this.dialog('checkpoint', () => api.checkpointNow(), 'A checkpoint is being saved.');
    this.dialog('stop', (form) => api.stop(stopOrder(form)), 'The job is being stopped.');
    this.dialog('limits', (form) => api.changeLimits(this.newLimits(form)), 'Limits changed.');
    byId('limits-dialog').addEventListener('input', () => this.warnOfLimits());
    this.show();
  }

  tokenDialog() {
    const dialog = byId('token-dialog');
    byId('do-token').addEventListener('click', () => this.askToken());
    byId('token-cancel').addEventListener('click', () => dialog.close());
    byId('token-forget').addEventListener('click', () => {
      this.useToken('');
      dialog.close();
      toast('The token is forgotten.');
    });
    byId('token-form').addEventListener('submit', async (event) => {
      event.preventDefault();
      const value = byId('token').value.trim();
      if (value === '') return;
      api.setToken(value);
      try {
        await api.status();
      } catch (problem) {
        api.setToken('');
        byId('token-error').textContent =
          problem.status === 401 ? 'The agent does not know this token.' : problem.message;
        return;
      }
      this.useToken(value);
      dialog.close();
    });
    dialog.addEventListener('close', () => (byId('token').value = ''));
  }

  /** Opens the dialog; `why` replaces its text when the agent wants a token for reading. */
  askToken(why) {
    const dialog = byId('token-dialog');
    if (dialog.open) return;
    if (why) byId('token-text').textContent = why;
    byId('token-error').textContent = '';
    byId('token-plain').hidden = isPrivate();
    byId('token-forget').hidden = !api.hasToken();
    dialog.showModal();
    byId('token').focus();
  }

  useToken(value) {
    api.setToken(value);
    this.unlocked = false;
    this.learned = false;
    this.learn();
    this.show();
    this.changed();
  }

  /** Finds out, once for each token, whether orders may be given. */
  async learn() {
    if (this.learned) return;
    this.learned = true;
    try {
      this.unlocked = await api.mayControl();
      if (api.hasToken() && !this.unlocked) toast('This token may only read.');
    } catch {
      this.learned = false;
    }
    this.show();
  }

  /** Shows the buttons that can be used now. */
  show() {
    const status = this.status();
    const over = status !== undefined && isOver(status);
    for (const name of ['checkpoint', 'limits', 'stop']) {
      byId(`do-${name}`).hidden = !this.unlocked || over;
    }
    byId('do-token').hidden = this.unlocked && !api.hasToken();
    byId('do-token').textContent = api.hasToken() ? 'Token…' : 'Control…';
    // A link cannot bring the token along.
    byId('metrics').hidden = api.hasToken();
  }

  dialog(name, send, done) {
    const dialog = byId(`${name}-dialog`);
    const form = dialog.querySelector('form');
    const error = dialog.querySelector('.error');
    byId(`do-${name}`).addEventListener('click', () => {
      error.textContent = '';
      form.reset();
      this.prepare(name, form);
      dialog.showModal();
    });
    dialog.querySelector('[data-cancel]').addEventListener('click', () => dialog.close());
    form.addEventListener('submit', async (event) => {
      event.preventDefault();
      const button = form.querySelector('[type="submit"]');
      button.disabled = true;
      error.textContent = '';
      try {
        await send(form);
        dialog.close();
        toast(done);
      } catch (problem) {
        error.textContent = problem.status === 403 || problem.status === 401
          ? 'This token may only read.' : problem.message;
      } finally {
        button.disabled = false;
      }
    });
  }

  prepare(name, form) {
    const status = this.status();
    if (name === 'stop') {
      const steps = status?.checkpoint?.steps_at_risk;
      byId('stop-loss').textContent = steps === undefined ? 'what is not published is lost'
        : `${format.count(steps)} steps that are not published are lost`;
    }
    if (name === 'limits') {
      for (const field of ['max_wall_seconds', 'idle_seconds', 'stall_seconds']) {
        const limit = status?.limits?.[field];
        form.elements[field].value = limit === undefined ? 'off' : format.writeDuration(limit);
        form.elements[field].dataset.before = form.elements[field].value;
      }
      const budget = status?.cost?.budget ?? status?.limits?.budget_usd;
      form.elements.budget_usd.value = budget === undefined ? 'off' : String(budget);
      form.elements.budget_usd.dataset.before = form.elements.budget_usd.value;
      this.warnOfLimits();
    }
  }

  /** The limits that differ from what they were; throws what a person can mend. */
  newLimits(form) {
    const limits = {};
    for (const input of form.querySelectorAll('input')) {
      const text = input.value.trim();
      if (text === input.dataset.before) continue;
      const isMoney = input.name === 'budget_usd';
      const value = text === 'off' ? 'off'
        : isMoney ? Number(text.replace(/^\$/, '')) : format.parseDuration(text);
      if (value !== 'off' && (text === '' || !Number.isFinite(value) || value < 0)) {
        const wanted = isMoney ? 'dollars, such as 2.50, or off' : 'a time, such as 6h, or off';
        throw new Error(`${input.parentElement.textContent.trim()}: expected ${wanted}`);
      }
      limits[input.name] = value;
    }
    if (Object.keys(limits).length === 0) throw new Error('No limit is changed.');
    return limits;
  }

  /** Says so before a person ends the job by a limit. */
  warnOfLimits() {
    const warning = byId('limits-warning');
    const status = this.status();
    let text = '';
    try {
      const limits = this.newLimits(byId('limits-dialog').querySelector('form'));
      const started = Date.parse(status?.timestamps?.started ?? '');
      const used = (Date.parse(status?.timestamps?.updated ?? '') - started) / 1000;
      if (limits.max_wall_seconds <= used) text = 'The run is older than that: it ends now.';
      if (limits.budget_usd <= status?.cost_so_far) {
        text = 'More is spent already: the run ends now.';
      }
    } catch {
      // Half-typed values are judged when they are sent.
    }
    warning.textContent = text;
    warning.hidden = text === '';
  }
}

function stopOrder(form) {
  const { mode, machine } = form.elements;
  const order = { mode: mode.value, checkpoint: mode.value === 'graceful' };
  if (machine.value !== '') order.terminate_instance = machine.value === 'true';
  return order;
}
