// Text <-> token ids: byte-level BPE with GPT-2's pattern, as slm/data/tokenizer.py.

// \p{White_Space} is what Rust calls \s; JavaScript's own \s differs from it in U+0085 and U+FEFF.
const PATTERN = /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+$|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}/gu;
const END_OF_TEXT = "<|endoftext|>";

export class Tokenizer {
  /** description: the content of a tokenizer.json of the tokenizers library. An id is its token's rank in merging. */
  constructor(description) {
    const { vocab } = description.model;
    this.endOfText = description.added_tokens[0].id;
    this.ranks = new Map(Object.entries(vocab).filter(([, id]) => id !== this.endOfText));
    const byte = new Map(characters().map((character, value) => [character, value]));
    this.bytes = [];
    for (const [name, id] of this.ranks) this.bytes[id] = Uint8Array.from(name, (character) => byte.get(character));
    this.bytes[this.endOfText] = new Uint8Array(0);
    this.character = [...byte.keys()];
  }

  /** The ids of `text`, in which <|endoftext|> is a token; a lone surrogate is read as U+FFFD. */
  encode(text) {
    const whole = text.toWellFormed?.() ?? new TextDecoder("utf-8", { ignoreBOM: true }).decode(new TextEncoder().encode(text));
    return whole.split(END_OF_TEXT).flatMap((part, number) => [
      ...(number ? [this.endOfText] : []),
      ...(part.match(PATTERN) ?? []).flatMap((piece) => this.#merge(piece)),
    ]);
  }

  /** The text of `ids`; bytes that do not form a character are shown as U+FFFD. */
  decode(ids) {
    const bytes = new Uint8Array(ids.flatMap((id) => [...this.bytes[id]]));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  }

  /** The ids of one word: of all neighbours, those whose union has the lowest rank become one, until none has any. */
  #merge(piece) {
    const parts = Array.from(new TextEncoder().encode(piece), (value) => this.character[value]);
    const whole = this.ranks.get(parts.join(""));
    if (whole !== undefined) return [whole];
    for (;;) {
      let best = Infinity;
      let at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(parts[i] + parts[i + 1]) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return parts.map((part) => this.ranks.get(part));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }
}

/** GPT-2's printable stand-in for each byte: printable Latin-1 as itself, the others from U+0100 up. */
function characters() {
  const printable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let others = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : others++));
}
