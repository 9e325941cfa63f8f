-- sentencepiece.lua - the parts of a SentencePiece tokenizer.model that a GGUF file holds: pieces, scores, types,
-- the kind of model, the normaliser (sentencepiece_model.proto). runtime/text/tokenizer_model.c checks the file;
-- here only files are read that it has loaded.
local M = {}

-- Fields of a message: number, value (an integer, or bytes).
local function fields(s)
  local at = 1
  local function varint()
    local v, shift = 0, 0
    repeat
      local c = s:byte(at)
      at = at + 1
      v, shift = v | (c & 127) << shift, shift + 7
    until c < 128
    return v
  end
  return function()
    if at > #s then return nil end
    local tag = varint()
    local wire = tag & 7
    if wire == 0 then return tag >> 3, varint() end
    local size = wire == 5 and 4 or wire == 1 and 8 or varint()
    at = at + size
    return tag >> 3, s:sub(at - size, at - 1)
  end
end

--- @param bytes string  of a tokenizer.model
--- @return table  pieces { text, score, type }[], unigram, byte_fallback, suffix, charsmap, prefix, merge, escape
function M.read(bytes)
  local m = { pieces = {}, unigram = true, byte_fallback = false, suffix = false, charsmap = "", prefix = true,
    merge = true, escape = true }
  for number, value in fields(bytes) do
    if number == 1 then
      local piece = { text = "", score = 0.0, type = 1 }
      for n, v in fields(value) do
        if n == 1 then piece.text = v
        elseif n == 2 then piece.score = string.unpack("<f", v)
        elseif n == 3 then piece.type = v end
      end
      m.pieces[#m.pieces + 1] = piece
    elseif number == 2 then
      for n, v in fields(value) do
        if n == 3 then m.unigram = v == 1
        elseif n == 24 then m.suffix = v ~= 0
        elseif n == 35 then m.byte_fallback = v ~= 0 end
      end
    elseif number == 3 then
      for n, v in fields(value) do
        if n == 2 then m.charsmap = v
        elseif n == 3 then m.prefix = v ~= 0
        elseif n == 4 then m.merge = v ~= 0
        elseif n == 5 then m.escape = v ~= 0 end
      end
    end
  end
  return m
end

return M
