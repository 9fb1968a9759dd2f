"""What is run inside a page, in a world of its own that the page's scripts can neither see nor change.

The walker goes through a document as it is shown (open shadow trees, closed ones that were handed in, slots) and reads
role and name of each element from the browser's accessibility tree. It keeps the elements that can be used, in order;
a ref is a place in that list.

Floor:  tools
Source: tools spec 6.2; WAI-ARIA 1.2 for roles and states
"""

WORLD = "spacebot"  # name of the isolated world

# Each entry: [depth, role, name, ref or -1, states, value, text, frame or -1]
WALKER = r"""
(token, mostEntries) => {
  const ACTIVE = new Set(['button','checkbox','combobox','link','menuitem','menuitemcheckbox','menuitemradio','option',
    'radio','searchbox','slider','spinbutton','switch','tab','textbox','treeitem']);
  const NAMED = new Set(['heading','img','image','figure']);
  const SHOWN = new Set(['heading','list','listitem','table','row','cell','gridcell','columnheader','rowheader','grid',
    'navigation','main','banner','contentinfo','complementary','form','search','dialog','alertdialog','alert','status',
    'article','tablist','menu','menubar','listbox','tree','toolbar','tabpanel','progressbar','meter','radiogroup',
    'blockquote','img','image','figure','region','group','log','definition','term']);
  const QUIET = new Set(['list','listitem','row','cell','gridcell','group','region','article','figure','form','table',
    'blockquote','definition','term','img','image']);
  const TAGS = {A:'link',BUTTON:'button',SUMMARY:'button',TEXTAREA:'textbox',SELECT:'combobox',H1:'heading',
    H2:'heading',H3:'heading',H4:'heading',LI:'listitem',UL:'list',OL:'list',IMG:'img',TABLE:'table',TR:'row',
    TD:'cell',NAV:'navigation',MAIN:'main'};
  const SKIPPED = new Set(['SCRIPT','STYLE','NOSCRIPT','TEMPLATE','HEAD','META','LINK','TITLE']);
  const refs = [], frames = [], out = [];
  const closed = globalThis.__closed;
  let words = '', at = 0, cut = 0, muted = 0;
  const squeeze = s => (s || '').replace(/\s+/g, ' ').trim();
  const flush = () => {
    const text = squeeze(words);
    words = '';
    if (!text) return;
    const last = out[out.length - 1];
    if (last && last[3] < 0 && !last[6] && QUIET.has(last[1]) && last[0] === at - 1) last[6] = text.slice(0, 2000);
    else out.push([at, 'text', '', -1, '', '', text.slice(0, 2000), -1]);
  };
  const roleOf = e => {
    const known = e.computedRole;
    if (typeof known === 'string') return known;
    return e.getAttribute('role') || TAGS[e.tagName] || 'generic';
  };
  const nameOf = e => {
    const known = e.computedName;
    if (typeof known === 'string') return squeeze(known).slice(0, 200);
    return squeeze(e.getAttribute('aria-label') || (e.labels && e.labels[0] && e.labels[0].textContent) || e.alt ||
      e.title || e.textContent || e.placeholder).slice(0, 200);
  };
  const statesOf = (e, role) => {
    const s = [];
    const aria = n => e.getAttribute('aria-' + n);
    if (role === 'heading') s.push('level=' + (aria('level') || e.tagName.slice(1)));
    if (e.disabled || aria('disabled') === 'true') s.push('disabled');
    if (e.tagName === 'INPUT' && (e.type === 'checkbox' || e.type === 'radio'))
      s.push(e.indeterminate ? 'mixed' : e.checked ? 'checked' : 'unchecked');
    else if (aria('checked')) s.push({true:'checked',mixed:'mixed'}[aria('checked')] || 'unchecked');
    if (aria('pressed')) s.push(aria('pressed') === 'true' ? 'pressed' : 'unpressed');
    if (aria('selected') === 'true') s.push('selected');
    const open = aria('expanded') ?? (e.tagName === 'SUMMARY' && e.parentNode ? String(!!e.parentNode.open) : null);
    if (open) s.push(open === 'true' ? 'expanded' : 'collapsed');
    if (e.required || aria('required') === 'true') s.push('required');
    if (e.readOnly) s.push('readonly');
    if (e.tagName === 'INPUT' && e.type === 'file') s.push('file');
    return s.join(', ');
  };
  const valueOf = e => {
    if (e.tagName === 'SELECT') {
      const chosen = [...e.selectedOptions].map(o => squeeze(o.label)).join(' + ');
      const all = [...e.options].slice(0, 30).map(o => squeeze(o.label).slice(0, 40)).join(' | ');
      return chosen + ' (of: ' + all + (e.options.length > 30 ? ' | …' : '') + ')';
    }
    if (e.tagName === 'INPUT') {
      if (['checkbox','radio','button','submit','reset','image','hidden'].includes(e.type)) return '';
      if (e.type === 'password') return e.value ? '•'.repeat(Math.min(e.value.length, 8)) : '';
      if (e.type === 'file') return [...e.files].map(f => f.name).join(', ');
      return e.value.slice(0, 300);
    }
    if (e.tagName === 'TEXTAREA') return e.value.slice(0, 300);
    return squeeze(e.getAttribute('aria-valuetext') || e.getAttribute('aria-valuenow'));
  };
  const isField = e => (e.tagName === 'INPUT' && e.type !== 'hidden') || e.tagName === 'TEXTAREA' ||
    e.tagName === 'SELECT' || e.tagName === 'SUMMARY';
  const walkAll = (nodes, depth) => { for (const node of nodes) walk(node, depth); };
  const below = e => {
    if (e.tagName === 'SLOT') {
      const given = e.assignedNodes({flatten: true});
      return given.length ? given : e.childNodes;
    }
    const root = e.shadowRoot || (closed && closed.get(e));
    return root ? root.childNodes : e.childNodes;
  };
  const walk = (node, depth) => {
    if (node.nodeType === 3) { if (!muted) { at = depth; words += node.data; } return; }
    if (node.nodeType !== 1 || SKIPPED.has(node.tagName)) return;
    if (out.length >= mostEntries) { cut++; return; }
    const e = node;
    const shown = e.checkVisibility();
    let style = null;
    if (!shown) {
      style = getComputedStyle(e);
      if (style.display !== 'contents') return;
    }
    if (e.getAttribute('aria-hidden') === 'true' || e.inert) return;
    style = style || getComputedStyle(e);
    const visible = style.visibility === 'visible';
    let role = roleOf(e);
    if (e.tagName === 'IFRAME' || e.tagName === 'FRAME') {
      flush();
      out.push([depth, 'iframe', squeeze(e.title || e.name).slice(0, 100), -1, '', '', '', frames.length]);
      frames.push(e);
      return;
    }
    const edits = e.isContentEditable && !(e.parentElement && e.parentElement.isContentEditable);
    let active = visible && (ACTIVE.has(role) || isField(e) || edits);
    if (!active && visible && (!SHOWN.has(role) || QUIET.has(role))) {
      const points = style.cursor === 'pointer' && e.parentElement &&
        getComputedStyle(e.parentElement).cursor !== 'pointer' && e.tagName !== 'LABEL';
      if (e.onclick || e.hasAttribute('onclick') || (e.tabIndex >= 0 && e.hasAttribute('tabindex')) || points) {
        active = true;
        role = ACTIVE.has(role) ? role : 'clickable';
      }
    }
    if (active) {
      flush();
      if (edits && !ACTIVE.has(role)) role = 'textbox';
      if (e.tagName === 'SUMMARY') role = 'button';
      if (isField(e) && !ACTIVE.has(role)) role = e.tagName === 'INPUT' ? e.type : role;
      let name = nameOf(e);
      if (!name && role === 'clickable') name = squeeze(e.innerText).slice(0, 200);
      if (!name) name = squeeze(e.getAttribute('placeholder') || e.title).slice(0, 200);
      const hint = squeeze(e.getAttribute('aria-description') || e.getAttribute('title')).slice(0, 200);
      const value = edits ? squeeze(e.innerText).slice(0, 300) : valueOf(e);
      out.push([depth, role, name, refs.length, statesOf(e, role), value, hint !== name ? hint : '', -1]);
      refs.push(e);
      if (isField(e) && e.tagName !== 'SUMMARY' || edits) return;
      inside(below(e), depth + 1, !name);
      return;
    }
    if (SHOWN.has(role) && visible) {
      const name = nameOf(e);
      const wanted = name || !(role === 'region' || role === 'group' || role === 'img' || role === 'image' ||
        role === 'figure' || role === 'form');
      if (wanted) {
        flush();
        const named = NAMED.has(role) || !QUIET.has(role);
        out.push([depth, role, named ? name : (e.getAttribute('aria-label') || ''), -1, statesOf(e, role), '', '', -1]);
        if (NAMED.has(role)) { inside(below(e), depth + 1, false); return; }
        at = depth + 1;
        walkAll(below(e), depth + 1);
        at = depth + 1;
        flush();
        return;
      }
    }
    const inline = style.display.startsWith('inline') || style.display === 'contents';
    if (!inline || e.tagName === 'BR') { flush(); }
    const labels = e.tagName === 'LABEL' && e.control ? 1 : 0;  // its words are the control's name already
    muted += labels;
    walkAll(below(e), depth);
    muted -= labels;
    if (!inline) { at = depth; flush(); } else words += e.tagName === 'BR' ? ' ' : '';
  };
  // What is inside something whose name says it already: only what can be used, and text when there was no name.
  const inside = (nodes, depth, withText) => {
    const length = out.length;
    words = '';
    walkAll(nodes, depth);
    if (withText) flush(); else words = '';
    if (!withText) for (let i = out.length - 1; i >= length; i--)
      if (out[i][3] < 0 && out[i][7] < 0) out.splice(i, 1);
  };
  if (document.body) { at = 0; walk(document.body, 0); flush(); }
  globalThis.__spacebot = {token, refs, frames};
  return [out, cut, document.title];
}
"""

# How many elements a document has, and whether one may hide a closed shadow tree: one of a kind of its own, or one that
# takes room though nothing in it is shown.
SIZE = r"""
() => {
  const HOSTS = new Set(['article','aside','blockquote','div','footer','h1','h2','h3','h4','h5','h6','header','main',
    'nav','p','section','span']);
  const all = document.getElementsByTagName('*');
  for (const e of all) {
    if (e.shadowRoot) continue;
    if (e.localName.includes('-')) return [all.length, true];
    if (!HOSTS.has(e.localName) || !e.offsetHeight || !e.offsetWidth) continue;
    const first = e.firstElementChild;
    if (!e.firstChild || (first && e.childNodes.length === e.children.length && !first.checkVisibility()))
      return [all.length, true];
  }
  return [all.length, false];
}
"""

# Resolves when nothing has changed in the document for a moment, at the latest after `most` ms.
QUIET_PAGE = r"""
(still, most) => new Promise(resolve => {
  const began = performance.now();
  let last = began;
  const seen = new MutationObserver(() => { last = performance.now(); });
  seen.observe(document, {subtree: true, childList: true, characterData: true});
  const look = () => {
    const now = performance.now();
    const body = document.body;
    const filled = body && (body.innerText.trim() || body.querySelector('img,canvas,svg,iframe,input,button,video'));
    const ready = document.readyState === 'complete' && filled;
    if (now - began >= most || (ready && now - last >= still)) {
      seen.disconnect();
      resolve([Boolean(ready), Math.round(now - began)]);
    } else setTimeout(look, 25);
  };
  look();
})
"""

# Why a click at the point where `hit` lies would not reach `this`; empty when it would.
COVERED = r"""
function(hit) {
  for (let n = hit; n; n = n.assignedSlot || n.parentNode || n.host) {
    if (n === this) return '';
    if (n.tagName === 'LABEL' && n.control === this) return '';
  }
  const e = hit.nodeType === 1 ? hit : hit.parentElement;
  const words = (e && (e.computedName || e.innerText) || '').replace(/\s+/g, ' ').trim().slice(0, 80);
  return (e ? e.tagName.toLowerCase() : 'something') + (words ? ' "' + words + '"' : '');
}
"""

# Resolves when a text is there, at the latest after `most` ms.
AWAIT_TEXT = r"""
(text, most) => new Promise(done => {
  const began = performance.now();
  const look = () => {
    const there = text && document.body && document.body.innerText.includes(text);
    if (there || performance.now() - began > most) done(Boolean(there)); else setTimeout(look, 50);
  };
  look();
})
"""

# What can be typed into an element: kind, whether it is editable, why not.
FIELD = r"""
function() {
  const t = this.tagName, type = (this.type || '').toLowerCase();
  if (this.disabled) return ['', 'it is disabled'];
  if (this.readOnly) return ['', 'it is read-only'];
  if (t === 'SELECT') return ['select', ''];
  if (t === 'TEXTAREA') return ['text', ''];
  if (this.isContentEditable) return ['rich', ''];
  if (t !== 'INPUT') return ['', 'it is no text field'];
  if (['date','time','month','week','datetime-local','color','range'].includes(type)) return ['set', ''];
  if (['button','submit','reset','checkbox','radio','image','file','hidden'].includes(type))
    return ['', 'it is a ' + type + ' input'];
  return ['text', ''];
}
"""

# Put the cursor into a field and mark what it holds, so that typing replaces it; or go to its end.
PREPARE_FIELD = r"""
function(clear) {
  this.focus();
  if (this.isContentEditable) {
    const all = document.createRange();
    all.selectNodeContents(this);
    if (!clear) all.collapse(false);
    const s = getSelection();
    s.removeAllRanges();
    s.addRange(all);
  } else if (clear) this.select();
  else try { this.setSelectionRange(this.value.length, this.value.length); } catch (e) { /* email, number */ }
  let a = document.activeElement;
  while (a && a.shadowRoot && a.shadowRoot.activeElement) a = a.shadowRoot.activeElement;
  return a === this || this.matches(':focus') || this.matches(':focus-within');
}
"""

# Set a field that cannot be typed into, as its picker would.
SET_VALUE = r"""
function(value) {
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(this, value);
  this.dispatchEvent(new Event('input', {bubbles: true, composed: true}));
  this.dispatchEvent(new Event('change', {bubbles: true}));
  return this.value;
}
"""

# Choose an option by its words or value; answers with what is chosen, or with what there is.
CHOOSE = r"""
function(wanted) {
  if (this.tagName !== 'SELECT') return ['no select', []];
  if (this.disabled) return ['disabled', []];
  const squeeze = s => (s || '').replace(/\s+/g, ' ').trim();
  const all = [...this.options];
  const found = all.find(o => squeeze(o.label) === wanted) || all.find(o => o.value === wanted) ||
    all.find(o => squeeze(o.label).toLowerCase() === wanted.toLowerCase());
  if (!found || found.disabled) return ['missing', all.slice(0, 50).map(o => squeeze(o.label))];
  if (this.multiple) found.selected = true; else this.selectedIndex = found.index;
  this.dispatchEvent(new Event('input', {bubbles: true, composed: true}));
  this.dispatchEvent(new Event('change', {bubbles: true}));
  return ['', [squeeze(found.label)]];
}
"""

# What tells of a page that keeps programs out: addresses of scripts and visible frames, fields, words, size of text.
SIGNS = r"""
(() => {
  const shown = f => { const b = f.getBoundingClientRect(); return b.width >= 150 && b.height >= 50; };
  return {
    sources: [...document.querySelectorAll('script[src],iframe[src]')].slice(0, 500).map(e => e.src),
    widgets: [...document.querySelectorAll('iframe[src]')].filter(shown).map(e => e.src),
    fields: [...document.querySelectorAll('[name]')].slice(0, 2000).map(e => e.getAttribute('name'))
      .filter(n => /-response$/.test(n)),
    marks: ['#challenge-form','#challenge-running','#cf-challenge-running','.cf-browser-verification',
      '#challenge-stage','[data-ray]','script[src*="/cdn-cgi/challenge-platform/"]']
      .filter(s => document.querySelector(s)),
    refused: (document.querySelector('meta[name=spacebot-not-opened]') || {}).content || '',
    title: document.title, size: (document.body ? document.body.innerText : '').trim().length,
    words: (document.body ? document.body.innerText : '').slice(0, 3000),
    password: !!document.querySelector('input[type=password]')
  };
})()
"""
