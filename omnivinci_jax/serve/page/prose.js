// Renders the Markdown that models write: paragraphs, lists, headings, code, bold and italics. Nothing becomes HTML.

import { element } from "./dom.js";

/** Returns the elements of a text in Markdown. */
export function prose(text) {
  return text.split(/^(```[^\n]*\n[\s\S]*?(?:\n```[ \t]*$|$(?![\s\S])))/m).flatMap((piece) => {
    const code = piece.match(/^```[^\n]*\n([\s\S]*?)(?:\n```[ \t]*)?$/);
    if (code) return [element("pre", { tabIndex: 0 }, element("code", {}, code[1]))];
    return piece.split(/\n{2,}/).filter((block) => block.trim()).flatMap(blocks);
  });
}

const BULLET = /^\s*[-*•]\s+/;
const NUMBER = /^\s*\d+[.)]\s+/;

/** Returns the elements of a block; a list may follow a paragraph without an empty line. */
function blocks(block) {
  const made = [];
  let kind = null;
  for (const line of block.split("\n")) {
    const heading = line.match(/^#{1,6}\s+(.*)/);
    const next = heading ? "h3" : BULLET.test(line) ? "ul" : NUMBER.test(line) ? "ol" : "p";
    if (next === "h3") made.push(element("h3", {}, ...inline(heading[1])));
    else if (next === "p") {
      if (kind === "p") made.at(-1).append(element("br"), ...inline(line));
      else if (line.trim()) made.push(element("p", {}, ...inline(line)));
    } else {
      if (kind !== next) made.push(element(next, next === "ol" ? { start: parseInt(line, 10) } : {}));
      made.at(-1).append(element("li", {}, ...inline(line.replace(next === "ul" ? BULLET : NUMBER, ""))));
    }
    kind = line.trim() ? next : null;
  }
  return made;
}

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*)/).map((piece, i) => {
    if (i % 2 === 0) return piece;
    if (piece.startsWith("`")) return element("code", {}, piece.slice(1, -1));
    if (piece.startsWith("**")) return element("strong", {}, piece.slice(2, -2));
    return element("em", {}, piece.slice(1, -1));
  });
}
