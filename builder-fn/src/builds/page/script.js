'use strict';
(() => {
  const build = document.getElementById('build');
  if (!build) return;
  const get = (id) => document.getElementById(id);
  const create = (name, text) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const lines = get('lines'), found = get('found'), hits = get('hits'), follow = get('follow');
  // The most lines that stay in the document while a log is followed, and that are added at once to one that has ended.
  const KEPT = 3000, ADDED = 1000, HITS = 100;
  const logAddress = build.dataset.log, pageAddress = build.dataset.page;
  const logAt = (number) => logAddress + (logAddress.includes('?') ? '&' : '?') + 'from=' + number;
  let next = Number(get('later').dataset.next);
  let live = build.hasAttribute('data-live');

  // The same rules as for the lines that the builder renders: see ansi.rs.
  const hidden = /[\u0080-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;
  const code = (character) => character.codePointAt(0);
  const visible = (text) => text
    .replace(/[\u0000-\u0008\u000a-\u001f\u007f]/g, (c) => String.fromCodePoint(c === '\u007f' ? 0x2421 : 0x2400 + code(c)))
    .replace(hidden, (c) => '<U+' + code(c).toString(16).toUpperCase().padStart(4, '0') + '>');
  const nearest = (red, green, blue) => {
    const half = Math.floor(Math.max(red, green, blue) / 2);
    return [red, green, blue].reduce((sum, part, bit) => sum | (part > half && part > 63 ? 1 << bit : 0), 0);
  };
  const ofPalette = (number) => {
    if (number < 16) return number % 8;
    if (number > 231) return number < 244 ? 0 : 7;
    const part = (divisor) => Math.floor((number - 16) / divisor) % 6 * 51;
    return nearest(part(36), part(6), part(1));
  };
  const restyle = (style, parameters) => {
    const numbers = parameters.split(';').map(Number);
    for (let at = 0; at < numbers.length; at++) {
      const number = numbers[at];
      if (number === 0) style = {};
      else if (number === 1) style = { ...style, bold: true };
      else if (number === 22) style = { ...style, bold: false };
      else if (number >= 30 && number <= 37) style = { ...style, colour: number - 30 };
      else if (number >= 90 && number <= 97) style = { ...style, colour: number - 90 };
      else if (number === 39) style = { ...style, colour: undefined };
      else if (number === 38 || number === 48) {
        const is256 = numbers[at + 1] === 5;
        const colour = is256 ? ofPalette(numbers[at + 2]) : nearest(...numbers.slice(at + 2, at + 5));
        if (number === 38) style = { ...style, colour };
        at += is256 ? 2 : 4;
      }
    }
    return style;
  };
  const fill = (target, text) => {
    const shown = [...text].slice(0, 1000);
    const left = [...text].length - shown.length;
    const parts = shown.join('')
      .replace(/\u001b\](?:(?!\u001b\\|\u0007)[^\u001b])*(?:\u0007|\u001b\\)/g, '')
      .replace(/\u001b\[[\u0020-\u003f]*[@-ln-~]/g, '')
      .split(/\u001b\[([\u0020-\u003f]*)m/, 401);
    let style = {};
    parts.forEach((part, index) => {
      if (index % 2) style = restyle(style, part);
      else if (part && (style.bold || style.colour !== undefined)) {
        const span = target.appendChild(create('span', visible(part)));
        if (style.bold) span.classList.add('b');
        if (style.colour !== undefined) span.classList.add('a' + style.colour);
      } else if (part) target.append(visible(part));
    });
    if (left) target.append(create('em', ' … and ' + left + ' characters more'));
  };
  const split = (line) => {
    const match = /^([vl]): \S+ ?(.*)$/s.exec(line);
    return match ? { isStep: match[1] === 'v', text: match[2] } : { isStep: false, text: line };
  };

  const nameOf = (step, line) => {
    const known = document.querySelector('#top [data-step="' + step + '"] .name');
    if (known) return known.textContent;
    const { isStep, text } = split(line);
    return isStep ? visible(text).replace(/ \d+\.\d+s$/, '').slice(0, 120) : 'step ' + step;
  };
  const listFor = (step, line) => {
    const last = lines.lastElementChild;
    if (last && last.id !== 'empty' && (last.dataset.step || '') === String(step || '')) {
      return last.tagName === 'OL' ? last : last.querySelector('ol');
    }
    get('empty')?.remove();
    get('load')?.parentElement.remove();
    if (!step) return lines.appendChild(create('ol'));
    const block = create('details');
    block.open = true;
    block.dataset.step = step;
    block.append(create('summary', nameOf(step, line)));
    const list = block.appendChild(create('ol'));
    lines.append(block);
    return list;
  };
  const add = (number, step, line) => {
    const { isStep, text } = split(line);
    const item = create('li');
    item.id = 'L' + number;
    const link = item.appendChild(create('a', number));
    link.href = '#L' + number;
    const span = create('span');
    if (isStep) span.className = 'step';
    fill(span, text);
    item.append(' ', span);
    listFor(step, line).append(item);
  };
  const prune = () => {
    let count = lines.querySelectorAll('li').length;
    while (count > KEPT) {
      const item = lines.querySelector('li');
      const list = item.parentElement;
      item.remove();
      count--;
      if (!list.firstElementChild) (list.parentElement === lines ? list : list.parentElement).remove();
    }
  };

  // Calls each() with the records of the log from a line on, until it returns false. Returns whether the log has ended.
  const read = async (from, each, signal) => {
    const response = await fetch(logAt(from), { headers: { Accept: 'text/event-stream' }, signal, cache: 'no-store' });
    if (response.status === 401) throw Object.assign(new Error('This link does not work any more.'), { isFinal: true });
    if (!response.ok) throw new Error('the log cannot be read: ' + response.status);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return false;
      const events = (rest + value).split('\n\n');
      rest = events.pop();
      for (const event of events) {
        const record = JSON.parse(event.slice(event.indexOf('{')));
        const isEnd = record.status !== 'in_progress';
        if (each(record, isEnd) === false) {
          await reader.cancel();
          return isEnd;
        }
        if (isEnd) return true;
      }
    }
  };
  const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

  // Resolves to a page of the builder's own, which is parsed without scripts, or to nothing.
  const load = (address) => new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open('GET', address);
    request.setRequestHeader('Accept', 'text/html');
    request.responseType = 'document';
    request.onloadend = () => resolve(request.status === 200 && request.response?.getElementById('build') ? request.response : null);
    request.send();
  });
  // Replaces what the builder knows better now: the state, the steps, the deployment. An answer that was overtaken by a
  // younger one changes nothing.
  let asked = 0, shown = 0;
  const refresh = async () => {
    const number = ++asked;
    const page = await load((location.search || '?') + '&form=state');
    const other = page?.getElementById('build');
    if (!other || number < shown) return true;
    shown = number;
    for (const id of ['top', 'rest']) get(id).replaceChildren(...page.getElementById(id).childNodes);
    build.dataset.state = other.dataset.state;
    document.title = page.title;
    // The log has no line about the end of a wait or the beginning of a deployment.
    if (live && !document.querySelector('#top [data-step] .running')) refreshSoon();
    return other.hasAttribute('data-live');
  };
  // Loads the lines that the builder had no time for: it waits longer for those that an address names.
  const loadLines = async (link) => {
    found.textContent = 'Loading the lines…';
    const page = await load(link.href.split('#')[0] + '&form=log');
    if (!page || !page.querySelector('#lines li')) return void (found.textContent = 'The lines could not be loaded.');
    for (const id of ['lines', 'steps']) get(id).replaceChildren(...page.getElementById(id).childNodes);
    const pagers = page.querySelectorAll('#log .pager');
    document.querySelectorAll('#log .pager').forEach((pager, at) => pager.replaceChildren(...pagers[at].childNodes));
    next = Number(get('later').dataset.next);
    const note = page.getElementById('load')?.parentElement;
    if (note) link.parentElement.replaceWith(note);
    else link.parentElement.remove();
    found.textContent = '';
  };
  // Refreshes at once, or 3 s after the last time, so that nothing that a step changed is missed before a long pause.
  let refreshed = Date.now(), refreshing = false, isDue = false;
  const refreshSoon = async () => {
    isDue = true;
    if (refreshing) return;
    refreshing = true;
    while (isDue && live) {
      const wait = refreshed + 3000 - Date.now();
      if (wait > 0) {
        await pause(wait / 1000);
        continue;
      }
      isDue = false;
      await refresh();
      refreshed = Date.now();
    }
    refreshing = false;
  };

  // Says what follows the last line, in place of links to other parts of the log.
  const sayLater = (text) => {
    const later = create('span', text);
    later.id = 'later';
    get('later').parentElement.replaceChildren(later);
  };

  const followLog = async () => {
    get('following').hidden = false;
    sayLater('The log goes on.');
    const atEnd = () => innerHeight + scrollY > lines.getBoundingClientRect().bottom + scrollY - 40;
    for (let wait = 1; ; wait = Math.min(wait * 2, 15)) {
      let sticks = atEnd();
      let ended = false;
      try {
        ended = await read(next, (record) => {
          wait = 1;
          for (const line of record.log || []) {
            add(record.seq, record.step, line);
            if (split(line).isStep) refreshSoon();
          }
          if (record.cached) refreshSoon();
          if (record.status === 'in_progress' && record.log?.length) next = record.seq + 1;
          prune();
          if (follow.checked && sticks) get('later').scrollIntoView({ block: 'end' });
          sticks = follow.checked && (sticks || atEnd());
        });
      } catch (error) {
        if (error.isFinal) return void (found.textContent = error.message);
        found.textContent = 'The connection was lost; trying again.';
      }
      if (ended) break;
      await pause(wait);
    }
    // The answer with the end may be a moment younger than what another builder knows.
    for (let tries = 0; tries < 20 && await refresh(); tries++) await pause(1);
    live = false;
    build.removeAttribute('data-live');
    get('following').hidden = true;
    sayLater('This is the end of the log.');
    found.textContent = 'The build has ended: ' + build.dataset.state + '.';
  };

  const addLater = async () => {
    let count = 0;
    const ended = await read(next, (record, isEnd) => {
      if (isEnd) return false;
      for (const line of record.log || []) add(record.seq, record.step, line);
      if (record.log?.length) next = record.seq + 1;
      return ++count < ADDED;
    });
    if (ended) return sayLater('This is the end of the log.');
    const later = create('a', 'Later lines');
    later.id = 'later';
    later.href = pageAddress + 'from=' + next + '#log';
    get('later').replaceWith(later);
  };

  let search;
  const find = async (wanted) => {
    search?.abort();
    search = new AbortController();
    lines.querySelectorAll('.hit').forEach((item) => item.classList.remove('hit'));
    hits.replaceChildren();
    hits.hidden = true;
    if (!wanted) return void (found.textContent = '');
    const text = wanted.toLowerCase();
    let count = 0;
    const mark = (number, line) => {
      if (!line.toLowerCase().includes(text)) return;
      if (++count > HITS) return;
      const item = create('li'), link = create('a', number);
      get('L' + number)?.classList.add('hit');
      link.href = '#L' + number;
      item.append(link, ' ' + visible(line).slice(0, 200));
      hits.append(item);
      hits.hidden = false;
    };
    const say = (isEnd) => {
      const more = count > HITS ? ', the first ' + HITS + ' are listed' : '';
      const end = live ? ' on this page. A build that has ended is searched whole.' : isEnd ? '.' : ', searching…';
      found.textContent = count + (count === 1 ? ' line' : ' lines') + ' found' + more + end;
    };
    try {
      if (live) {
        lines.querySelectorAll('li').forEach((item) => mark(Number(item.id.slice(1)), item.lastElementChild.textContent));
      } else {
        let seen = 0;
        await read(1, (record) => {
          for (const line of record.log || []) mark(record.seq, split(line).text);
          if (++seen % 5000 === 0) say(false);
        }, search.signal);
      }
      say(true);
      hits.querySelector('a')?.focus();
    } catch (error) {
      if (error.name !== 'AbortError') found.textContent = 'The search stopped: ' + error.message;
    }
  };

  get('tools').hidden = false;
  get('tools').addEventListener('submit', (event) => {
    event.preventDefault();
    find(get('find').value);
  });
  get('fold').addEventListener('click', (event) => {
    const opens = event.target.getAttribute('aria-expanded') !== 'true';
    lines.querySelectorAll('details').forEach((block) => { block.open = opens; });
    event.target.setAttribute('aria-expanded', opens);
    event.target.textContent = opens ? 'Fold all steps' : 'Unfold all steps';
  });
  build.addEventListener('click', (event) => {
    if (event.target.id !== 'later' || live || !event.target.href) return;
    event.preventDefault();
    addLater().catch((error) => { found.textContent = error.message; });
  });
  // Shows the line that the address names. If it is not on the page, the page begins shortly before it from now on.
  const showTarget = async () => {
    const number = /^#L(\d+)$/.exec(location.hash)?.[1];
    if (!number) return;
    if (!get('L' + number) && !live) {
      lines.replaceChildren();
      next = Math.max(1, number - 20);
      await addLater();
    }
    const item = get('L' + number);
    if (!item) return;
    const block = item.closest('details');
    if (block) block.open = true;
    item.classList.add('hit');
    item.scrollIntoView({ block: 'center' });
  };
  const showTargetOrWhy = () => showTarget().catch((error) => { found.textContent = error.message; });
  addEventListener('hashchange', showTargetOrWhy);
  showTargetOrWhy();
  if (live) {
    followLog();
    refreshSoon();
  } else if (get('load')) location.hash.startsWith('#L') ? refresh() : loadLines(get('load'));
})();
