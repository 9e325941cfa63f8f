-- same_ids.lua - whether two tokenizers give the same ids: some hundreds of texts that tell apart what files of
-- tokenizers differ in. What they do not find may still be there; that is what the converters' lists are for.
local M = {}

local fixed = {
  "", " ", "  ", "a", " a", "  a", "a ", "a  ", "a  b", "\n", "\n\n", "a\nb", "a \n b", "a\n\n\n\nb\t c", "\ta",
  "a\r\nb",
  "Hello world", "hello, world!", "HELLO World, it's 12345 o'clock", "I'll you're DON'T we've",
  "3.14159 1234567 12,345",
  "x1y22z333", "naïve café ÀÉ", "e\u{301} A\u{30A} o\u{308}x", "Å ﬁ Ⅳ ½ ² ㎏", "ＡＢＣ１２３ ｶﾞ", "你好，世界", "中文x中文 汉字 123",
  "日本語とカタカナ", "한국어 텍스트", "नमस्ते दुनिया", "Привет, МИР", "Ελληνικά ΣΑΣ", "שלום مرحبا",
  "ไทย ລາວ", "🙂 👩‍👩‍👧 🏴",
  "a\u{A0}b\u{3000}c\u{2003}d", "a\u{200B}b\u{200D}c\u{FEFF}d", "soft\u{AD}hyphen", "\u{2581}a \u{2581}\u{2581}b",
  "a\u{2028}b\u{85}c", "tab\tand\vform\f", "\u{1}\u{7F}x", "# Title\n\n- item 1\n- item 2\n",
  "def f(x):\n    return x**2  # ok\n",
  "a.b.c/d_e-f=g+h*i&j|k", "\"quoted\" 'single' (paren) [bracket] {brace}",
  "$100 €50 £20 50% @user #tag", "...!!!???",
  "https://example.org/a?b=c&d=e", "CamelCaseHTTPServer snake_case",
  "The quick brown fox jumps over the lazy dog.",
  "İstanbul ıI ß ẞ ﬀ", "x  \n  y   z    ", "1 22 333 4444 55555",
  "ab" .. ("!"):rep(20), ("a"):rep(40), ("word "):rep(12),
  "mixed 中e\u{301}🙂  end ", "\u{FFFD} bad", "<s>x</s> <unk>", "[CLS] a [SEP] b [MASK]",
  "<|im_start|>user\nhi<|im_end|>\n",
}

-- A generator with a fixed seed (Park and Miller 1988).
local function random()
  local state = 20240229
  return function(n)
    state = state * 48271 % 2147483647
    return state % n + 1
  end
end

--- The texts for a tokenizer: those above, its tokens in rows, its added tokens in sentences.
--- @param tok perilune.Tokenizer
--- @return string[]
function M.texts(tok)
  local out, draw = {}, random()
  for i, text in ipairs(fixed) do out[i] = text end
  for _ = 1, 240 do
    local ids = {}
    for k = 1, draw(5) do ids[k] = draw(tok.size) - 1 end
    local text = tok:decode(ids)
    out[#out + 1] = text
    if draw(4) == 1 then out[#out + 1] = text:upper() .. " " .. text end
  end
  local added = tok._c:added()
  for i, a in ipairs(added) do
    if i <= 40 or i > #added - 40 then
      local t = a.content
      out[#out + 1] = ("one %s two%sthree  %s  "):format(t, t, t)
      out[#out + 1] = ("%s%s x%sy %sz"):format(t, t, t, t)
    end
  end
  return out
end

--- Texts that two tokenizers cut differently.
--- @param a perilune.Tokenizer
--- @param b perilune.Tokenizer
--- @return table[] different  { text, want (a's ids), got (b's) }
--- @return integer count  how many texts were tried
function M.compare(a, b)
  local texts, different = M.texts(a), {}
  local left, right = a:encode_batch(texts), b:encode_batch(texts)
  for i, text in ipairs(texts) do
    if table.concat(left[i], " ") ~= table.concat(right[i], " ") then
      different[#different + 1] = { text = text, want = left[i], got = right[i] }
    end
  end
  return different, #texts
end

local function some(ids)
  local list = table.concat(ids, " ", 1, math.min(#ids, 12))
  return #ids > 12 and list .. " ..." or list
end

--- The same as a sentence, or nil when no text differs.
function M.report(a, b)
  local different, count = M.compare(a, b)
  if #different == 0 then return nil end
  local shortest = different[1]
  for _, d in ipairs(different) do if #d.text < #shortest.text then shortest = d end end
  return ("%d of %d texts get other ids: %q is %s here and %s there"):format(#different, count, shortest.text,
    some(shortest.want), some(shortest.got))
end

return M
