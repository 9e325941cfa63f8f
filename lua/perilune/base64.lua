-- base64.lua - bytes as text and back (RFC 4648): tables inside tokenizer.json, pictures inside a page.
local M = {}

local letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
local value = {}
for i = 1, #letters do value[letters:byte(i)] = i - 1 end

function M.encode(bytes)
  local out = {}
  for i = 1, #bytes, 3 do
    local a, b, c = bytes:byte(i, i + 2)
    local n = a << 16 | (b or 0) << 8 | (c or 0)
    local function letter(shift)
      local k = (n >> shift & 63) + 1
      return letters:sub(k, k)
    end
    out[#out + 1] = letter(18) .. letter(12) .. (b and letter(6) or "=") .. (c and letter(0) or "=")
  end
  return table.concat(out)
end

--- @return string|nil  nil: this is no base64
function M.decode(text)
  local out, n, bits = {}, 0, 0
  for i = 1, #text do
    local v = value[text:byte(i)]
    if v then
      n, bits = (n << 6 | v) & 0xFFFFFF, bits + 6
      if bits >= 8 then
        bits = bits - 8
        out[#out + 1] = string.char(n >> bits & 255)
      end
    elseif not text:sub(i, i):find "[=%s]" then
      return nil
    end
  end
  return table.concat(out)
end

return M
