-- streams.lua - the text of an answer as its tokens come, and what stands before the first of them.
local M = {}

--- The tokenizer's stream, or one for tokenizers whose tokens are whole characters.
--- @param tok table
--- @return table stream  push(id), finish()
function M.open(tok)
  if tok.stream then return tok:stream { skip_special = true } end
  return { push = function (_, id) return tok:decode { id } end, finish = function () return "" end }
end

local neutral_of = setmetatable({}, { __mode = "k" })

--- Ids of a token that is whole text of its own: what stands before an answer, so that a space that its first word
--- begins with is a space. The prompt's own last token will not do: it may end within a character.
--- @param tok table
--- @return integer[]
function M.neutral(tok)
  if not tok.stream then return {} end
  local ids = neutral_of[tok]
  if ids then return ids end
  local plain, shown = { add_special = false }, { skip_special = false }
  ids = tok:encode("a", plain)
  if tok:decode(ids, shown) ~= "a" then
    ids = {}
    for id = 0, tok.size - 1 do
      local text = not tok:is_special(id) and tok:decode({ id }, shown) or ""
      if text:find "%w" and not text:find "\u{FFFD}" and #tok:encode(text, plain) > 0 then
        ids = { id }
        break
      end
    end
  end
  neutral_of[tok] = ids
  return ids
end

return M
