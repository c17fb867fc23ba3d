// Packs a tar with the layout of npm's package `tar`, which the published example uses, without installing it:
//
// - Names start with `./`, and names of folders end with `/`. Entries come level by level, so the config is second.
// - Numbers are octal digits, a space and a NUL.
// - The header's prefix field has 130 bytes; the times of access and change follow it.
// - A PAX header precedes an entry whose name is not ASCII or too long; its times have fractions of a second.
'use strict';

const fs = require('node:fs');
const path = require('node:path');

const BLOCK = 512;
const TYPES = { file: '0', symlink: '2', folder: '5', pax: 'x' };

// Returns the tar with these [name, source]; a source is a path, or a Buffer with the content.
function pack(sources) {
  const blocks = [];
  const queue = [...sources];
  while (queue.length > 0) {
    const [name, source] = queue.shift();
    const entry = Buffer.isBuffer(source) ? fromBuffer(name, source) : fromPath(name, source);
    if (entry.type === 'folder') {
      for (const child of fs.readdirSync(source).sort()) queue.push([`${name}/${child}`, path.join(source, child)]);
    }
    if (needsPax(entry)) blocks.push(...write(paxHeader(entry)));
    blocks.push(...write(entry));
  }
  blocks.push(Buffer.alloc(2 * BLOCK));
  return Buffer.concat(blocks);
}

function fromBuffer(name, content) {
  const now = new Date();
  return { name, type: 'file', content, mode: 0o644, uid: 0, gid: 0, mtime: now, atime: now, ctime: now, link: '' };
}

function fromPath(name, source) {
  const { mode, uid, gid, mtime, atime, ctime } = fs.lstatSync(source);
  const common = { name, content: Buffer.alloc(0), mode: mode & 0o7777, uid, gid, mtime, atime, ctime, link: '' };
  const type = mode & fs.constants.S_IFMT;
  if (type === fs.constants.S_IFDIR) return { ...common, name: `${name}/`, type: 'folder' };
  if (type === fs.constants.S_IFLNK) return { ...common, type: 'symlink', link: fs.readlinkSync(source) };
  if (type === fs.constants.S_IFREG) return { ...common, type: 'file', content: fs.readFileSync(source) };
  throw new Error(`${source} is not a file, folder or symbolic link`);
}

function needsPax({ name, link }) {
  return split(name) === null || /[^\x00-\x7f]/.test(name + link) || Buffer.byteLength(link) > 100;
}

function paxHeader(entry) {
  const seconds = (date) => String(date.getTime() / 1000);
  const records = { path: entry.name, ctime: seconds(entry.ctime), atime: seconds(entry.atime), mtime: seconds(entry.mtime) };
  if (entry.link) records.linkpath = entry.link;
  const content = Buffer.from(Object.entries(records).map(([key, value]) => paxRecord(key, value)).join(''));
  return { ...entry, name: `PaxHeader/${path.basename(entry.name)}`, type: 'pax', content, link: '' };
}

// Returns "LENGTH KEY=VALUE\n"; LENGTH includes its own digits.
function paxRecord(key, value) {
  const rest = Buffer.byteLength(` ${key}=${value}\n`);
  let length = rest + String(rest).length;
  length = rest + String(length).length;
  return `${length} ${key}=${value}\n`;
}

// Returns [prefix, name] for the header's fields, or null if the name does not fit.
function split(name) {
  if (Buffer.byteLength(name) <= 100) return ['', name];
  for (let at = name.indexOf('/', 1); at > 0 && at <= 130; at = name.indexOf('/', at + 1)) {
    if (Buffer.byteLength(name.slice(at + 1)) <= 100 && at + 1 < name.length) return [name.slice(0, at), name.slice(at + 1)];
  }
  return null;
}

function write(entry) {
  const { type, content, mode, uid, gid, mtime, atime, ctime, link } = entry;
  const octal = (value, width) => `${value.toString(8).padStart(width, '0')} `;
  const time = (date) => Math.floor(date.getTime() / 1000).toString(8).padStart(11, '0');
  const [prefix, name] = split(entry.name) || ['', entry.name];
  const fields = [
    [0, Buffer.from(name).subarray(0, 100)], [100, octal(mode, 6)], [108, octal(uid, 6)], [116, octal(gid, 6)],
    [124, octal(content.length, 10)], [136, time(mtime)], [148, ' '.repeat(8)], [156, TYPES[type]],
    [157, Buffer.from(link).subarray(0, 100)], [257, 'ustar\x0000'], [329, octal(0, 6)], [337, octal(0, 6)],
    [345, prefix], [476, time(atime)], [488, time(ctime)],
  ];
  const header = Buffer.alloc(BLOCK);
  for (const [offset, value] of fields) Buffer.from(value).copy(header, offset);
  header.write(`${octal(header.reduce((sum, byte) => sum + byte, 0), 6)}\x00`, 148, 'latin1');
  return [header, content, Buffer.alloc((BLOCK - (content.length % BLOCK)) % BLOCK)];
}

module.exports = { pack };
