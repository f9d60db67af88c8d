'use strict';
// Sorting, baselines, splits, hover values and the image viewer. Everything else of the page works without it.
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // --- images that the page's parts share
  for (const image of all('img[data-image]')) {
    const source = data.images[image.dataset.image];
    if (source) image.src = source;
    else image.replaceWith(make('span', { className: 'muted', textContent: 'left out' }));
  }

  // --- where the reader is
  const links = new Map(all('nav a').map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) for (const [id, link] of links) link.classList.toggle('current', id === entry.target.id);
  }, { rootMargin: '-20% 0px -70% 0px' });
  all('section.dataset').forEach((section) => seen.observe(section));

  // --- test or validation cases
  for (const section of all('section.dataset')) {
    const buttons = all('[data-split-button]', section);
    const show = (split) => {
      for (const button of buttons) button.setAttribute('aria-pressed', String(button.dataset.splitButton === split));
      for (const part of all('[data-split]', section)) part.hidden = part.dataset.split !== split;
    };
    for (const button of buttons) button.addEventListener('click', () => show(button.dataset.splitButton));
    if (buttons.length) show('test');
  }

  // --- sorting
  const value = (row, column) => {
    const cell = row.cells[column];
    if (column === 0) return cell.querySelector('.name').textContent;
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  const sort = (header) => {
    const table = header.closest('table');
    const old = header.getAttribute('aria-sort');
    const first = header.dataset.direction === 'higher' ? 'descending' : 'ascending';
    const order = old === 'none' ? first : old === 'ascending' ? 'descending' : 'ascending';
    for (const other of all('th[aria-sort]', table)) other.setAttribute('aria-sort', 'none');
    header.setAttribute('aria-sort', order);
    const sign = order === 'ascending' ? 1 : -1;
    const column = header.cellIndex;
    const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
    rows.sort(([a], [b]) => (a === null) - (b === null) || sign * (a < b ? -1 : a > b ? 1 : 0));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  for (const header of all('.results th[aria-sort]')) header.querySelector('button').addEventListener('click', () => sort(header));

  // --- differences to a model
  for (const select of all('[data-baseline]')) {
    const section = select.closest('section');
    const differences = data.datasets[section.dataset.dataset].differences;
    const cells = all('.results tbody tr[data-experiment] td', section).map((cell) => [cell, cell.querySelector('.delta')?.outerHTML]);
    select.addEventListener('change', () => {
      for (const [cell, original] of cells) {
        const shown = cell.querySelector('.delta');
        if (!shown) continue;
        if (!select.value) { shown.outerHTML = original; continue; }
        const table = cell.closest('table');
        const experiment = cell.parentElement.dataset.experiment;
        const measure = table.tHead.rows[1].cells[cell.cellIndex].dataset.measure;
        const found = differences[table.dataset.table]?.[measure]?.[select.value]?.[experiment];
        const text = make('span', { className: `delta ${found ? found.state : ''}` });
        if (experiment === select.value) text.textContent = 'baseline';
        if (found) text.append(found.text, ...(found.interval ? [' ', make('i', { textContent: found.interval })] : []));
        shown.replaceWith(text);
      }
    });
  }

  // --- values under the pointer
  const tip = make('div', { className: 'tip', hidden: true });
  tip.setAttribute('role', 'status');
  document.body.append(tip);
  const say = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 4))}px`;
    tip.style.top = `${y + 16 + box.height > innerHeight ? y - box.height - 10 : y + 16}px`;
  };
  for (const plot of all('svg[data-curves]')) {
    const { places, lines } = JSON.parse(plot.dataset.curves);
    const epochs = Object.keys(places).map(Number).sort((a, b) => a - b);
    const cursor = plot.querySelector('.cursor');
    let at = epochs.length - 1;
    const show = (x, y) => {
      const epoch = epochs[at];
      cursor.setAttribute('x1', places[epoch]);
      cursor.setAttribute('x2', places[epoch]);
      cursor.style.visibility = 'visible';
      say([`epoch ${epoch}`, ...lines.filter((line) => epoch in line.text).map((line) => `${line.name}  ${line.text[epoch]}`)].join('\n'), x, y);
    };
    const hide = () => { cursor.style.visibility = 'hidden'; tip.hidden = true; };
    plot.addEventListener('pointermove', (event) => {
      const box = plot.getBoundingClientRect();
      const x = (event.clientX - box.left) * plot.viewBox.baseVal.width / box.width;
      at = epochs.reduce((best, epoch, n) => Math.abs(places[epoch] - x) < Math.abs(places[epochs[best]] - x) ? n : best, 0);
      show(event.clientX, event.clientY);
    });
    plot.addEventListener('pointerleave', hide);
    plot.addEventListener('blur', hide);
    plot.addEventListener('keydown', (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      at = Math.max(0, Math.min(epochs.length - 1, at + step));
      const box = plot.getBoundingClientRect();
      show(box.left + places[epochs[at]] * box.width / plot.viewBox.baseVal.width, box.top + box.height / 2);
    });
  }
  for (const group of all('.case')) {
    const same = all(`.case[data-case="${CSS.escape(group.dataset.case)}"]`, group.closest('section'));
    const title = group.querySelector('title');
    const text = title.textContent;
    title.remove(); // else the browser's own hint comes on top of this one
    group.addEventListener('pointerenter', (event) => {
      same.forEach((other) => other.classList.add('lit'));
      say(text, event.clientX, event.clientY);
    });
    group.addEventListener('pointerleave', () => {
      same.forEach((other) => other.classList.remove('lit'));
      tip.hidden = true;
    });
  }

  // --- images side by side
  const order = ['axial', 'coronal', 'sagittal', 'picture', 'detail'];
  for (const viewer of all('[data-viewer]')) {
    const section = viewer.closest('section');
    const { cases, models, names, explanations } = data.datasets[section.dataset.dataset];
    const byName = new Map(models.map((model) => [model.name, model]));
    const select = section.querySelector('[data-viewer-case]');
    const planes = section.querySelector('[data-viewer-planes]');
    const flipAll = section.querySelector('[data-viewer-flip]');
    const size = section.querySelector('[data-viewer-size]');
    cases.forEach((found, n) => {
      const tags = found.tags.length ? ` (${found.tags.join(', ')})` : '';
      const split = found.split === 'test' ? '' : `, ${found.split}`;
      select.append(make('option', { value: n, textContent: `${found.name}${split}${tags}` }));
    });
    let plane = null;

    const badge = (model) => make('span', { className: `badge ${model.series}`, textContent: model.letter, title: model.name });
    const picture = (key, alt) => data.images[key]
      ? make('img', { src: data.images[key], alt })
      : make('div', { className: 'absent', textContent: key ? 'left out to keep the page small' : 'this model has none' });
    const place = (figure, column) => { figure.style.gridColumn = column; return figure; };

    const flippable = (model, key, truth, truthName) => {
      const image = picture(key, `prediction of ${model.name}`);
      const caption = make('figcaption', {}, badge(model), make('span', { textContent: ' prediction' }));
      if (image.tagName !== 'IMG' || !data.images[truth]) return make('figure', {}, image, caption);
      const button = make('button', { type: 'button', className: 'flip', title: `hold: ${truthName}` }, image);
      button.setAttribute('aria-label', `Prediction of ${model.name}; hold to see the ${truthName}`);
      const flip = (on) => {
        const shown = on || flipAll.checked;
        image.src = data.images[shown ? truth : key];
        button.classList.toggle('flipped', shown);
        button.setAttribute('aria-pressed', String(shown));
        caption.lastChild.textContent = shown ? ` ${truthName}` : ' prediction';
      };
      button.addEventListener('pointerdown', () => flip(true));
      for (const end of ['pointerup', 'pointercancel', 'pointerleave', 'blur', 'keyup']) button.addEventListener(end, () => flip(false));
      button.addEventListener('keydown', (event) => { if (event.key === ' ' || event.key === 'Enter') { event.preventDefault(); flip(true); } });
      button.addEventListener('contextmenu', (event) => event.preventDefault());
      flip(false);
      return make('figure', {}, button, caption);
    };

    const draw = () => {
      const found = cases[Number(select.value)];
      const there = Object.keys(found.planes).sort((a, b) => order.indexOf(a) - order.indexOf(b));
      if (!there.includes(plane)) plane = there[0];
      planes.replaceChildren(...there.map((name) => {
        const button = make('button', { type: 'button', textContent: name });
        button.setAttribute('aria-pressed', String(name === plane));
        button.addEventListener('click', () => { plane = name; draw(); });
        return button;
      }));
      planes.hidden = there.length < 2;
      const { shared, models: own } = found.planes[plane];
      const parts = [];
      let column = 0;
      for (const kind of ['input', 'label', 'registered', 'aligned']) {
        const images = Object.entries(shared[kind] ?? {});
        for (const [key, owners] of images) {
          const whose = images.length > 1 ? owners.map((name) => badge(byName.get(name))) : [];
          parts.push(place(make('figure', {}, picture(key, names[kind]), make('figcaption', {}, ...whose, names[kind])), ++column));
        }
      }
      const before = column;
      viewer.style.setProperty('--columns', before + models.length);
      const bent = new Set(models.map((model) => own[model.name]?.deformation).filter(Boolean));
      const isOfLabel = bent.size === 1 && before > 2; // of the label, not of a model: below it
      viewer.style.setProperty('--from', isOfLabel ? 3 : 1);
      viewer.style.setProperty('--span', isOfLabel ? before - 2 : before);
      models.forEach((model, n) => {
        const images = own[model.name];
        const missing = () => make('figure', {}, make('div', { className: 'absent', textContent: 'no images of this case' }), make('figcaption', {}, badge(model)));
        parts.push(place(images ? flippable(model, images.prediction, images.truth, images.truth_name) : missing(), before + n + 1));
      });
      if (isOfLabel) {
        const { title, text } = explanations.deformation;
        parts.push(place(make('figure', {}, picture([...bent][0], title), make('figcaption', {}, make('b', { textContent: `${title}. ` }), text)), 2));
      }
      for (const kind of isOfLabel ? ['error', 'checkerboard'] : ['error', 'checkerboard', 'deformation']) {
        const there = models.filter((model) => own[model.name]?.[kind]);
        if (!there.length) continue;
        const { title, text, low, high, colours } = explanations[kind];
        const words = make('div', { className: 'explain' }, make('b', { textContent: title }), text);
        if (colours?.length) {
          const bar = make('span', { className: 'bar' });
          bar.style.background = `linear-gradient(to right, ${colours.join(',')})`;
          words.append(make('span', { className: 'scale' }, low, bar, high));
        }
        parts.push(words);
        models.forEach((model, n) => {
          const key = own[model.name]?.[kind];
          if (!own[model.name]) return;
          parts.push(place(make('figure', {}, picture(key, `${kind} of ${model.name}`), make('figcaption', {}, badge(model), ` ${kind}`)), before + n + 1));
        });
      }
      viewer.replaceChildren(...parts);
    };
    select.addEventListener('change', draw);
    flipAll.addEventListener('change', draw);
    size.addEventListener('input', () => {
      viewer.style.setProperty('--cell', `${size.value}px`);
    });
    draw();
  }

  // --- copying
  for (const button of all('[data-copy]')) {
    button.addEventListener('click', async () => {
      try {
        await navigator.clipboard.writeText(button.dataset.copy);
      } catch { // pages opened from a file may not be allowed to
        const range = document.createRange();
        range.selectNodeContents(button.previousElementSibling);
        const selection = getSelection();
        selection.removeAllRanges();
        selection.addRange(range);
        document.execCommand('copy');
      }
      button.textContent = 'Copied';
      setTimeout(() => { button.textContent = 'Copy'; }, 1500);
    });
  }
})();
