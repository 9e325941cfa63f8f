-- numbers.lua - numbers, times and names as the console shows them.

local M = {}

--- Four significant digits, at most nine characters; text stays text.
--- @param v any
--- @return string
function M.format(v)
  if type(v) ~= "number" then return tostring(v) end
  if v ~= v then return "nan" end
  if v == math.huge or v == -math.huge then return v > 0 and "inf" or "-inf" end
  if math.type(v) == "integer" or (v == math.floor(v) and math.abs(v) < 1e6 and math.abs(v) >= 1e4) then
    return ("%d"):format(v)
  end
  local a = math.abs(v)
  if a ~= 0 and (a < 1e-3 or a >= 1e6) then return (("%.2e"):format(v):gsub("e%+?(%-?)0?", "e%1")) end
  local digits = a >= 1000 and 0 or a >= 100 and 1 or a >= 10 and 2 or a >= 1 and 3 or 4
  return ("%." .. digits .. "f"):format(v)
end

--- "1:02:03", "4:05".
--- @param seconds number
--- @return string
function M.duration(seconds)
  local s = math.floor(seconds + 0.5)
  if s >= 3600 then return ("%d:%02d:%02d"):format(s // 3600, s // 60 % 60, s % 60) end
  return ("%d:%02d"):format(s // 60, s % 60)
end

--- A text as UTF-8: a byte that is in no character is U+FFFD, as tokenizers write it. A model's text may be cut
--- anywhere.
--- @param s string
--- @return string
function M.repaired(s)
  local parts, at = {}, 1
  while true do
    local n, bad = utf8.len(s, at)
    if n then break end
    parts[#parts + 1] = s:sub(at, bad - 1) .. "\u{FFFD}"
    at = bad + 1
  end
  return table.concat(parts) .. s:sub(at)
end

local statistics = { mean = true, std = true, min = true, max = true }

--- The end of a metric's name, which says enough on the console: "completions/mean_length" is mean_length, but
--- a statistic keeps what it is of: "rewards/accuracy/mean" is accuracy/mean.
--- @param name string
--- @return string
function M.short_name(name)
  local last = name:match "[^/]*$"
  return statistics[last:match "[^_]*$"] and name:match "[^/]*/[^/]*$" or last
end

return M
