// A text that grows, for those who read along: the page scrolls with it, and whole sentences are announced.

const SENTENCE = /^[\s\S]*?[.!?…]+["”’')\]]*(?=\s)/;

let wanted = false; // that the page scrolls with the text
let follows = false; // whether it does: not while the reader looks elsewhere
let waiting = ""; // text that is not announced yet
let frame = 0;

const beyond = (text) => text.getBoundingClientRect().bottom + 48 - innerHeight; // pixels of it below the window

/** Begin to announce, and to follow if `follow`. */
export function start(follow) {
  wanted = follows = follow;
  waiting = "";
}

/** `piece` was added to the element `text`; what is shown in `said` is announced. */
export function grew(text, piece, said, still) {
  waiting += piece;
  const sentence = SENTENCE.exec(waiting)?.[0];
  if (sentence) {
    said.textContent = sentence.trim();
    waiting = waiting.slice(sentence.length);
  }
  if (frame || still) return;
  frame = requestAnimationFrame(() => {
    frame = 0;
    if (!follows) return;
    if (text.getBoundingClientRect().bottom < 100) text.scrollIntoView();
    else if (beyond(text) > 0) scrollBy(0, beyond(text));
  });
}

/** Announce what is left. */
export function finish(said) {
  if (waiting.trim()) said.textContent = waiting.trim();
  waiting = "";
}

/** Follow `text` no longer when the reader scrolls up, and again when they come back to its end. */
export function watch(text) {
  let [place, height] = [0, 0];
  addEventListener("scroll", () => {
    const page = document.documentElement.scrollHeight;
    if (scrollY < place && page >= height) follows = false; // a page that shrinks scrolls by itself
    else if (beyond(text) < 50) follows = wanted;
    [place, height] = [scrollY, page];
  }, { passive: true });
}
