-- metrics.lua - what is measured when a problem is answered several times.

local M = {}

--- The chance that at least one of k answers is right, estimated without bias from n answers of which c
--- are: 1 - C(n - c, k) / C(n, k) (arXiv:2107.03374, equation 1).
--- @param n integer
--- @param c integer
--- @param k integer  at most n
--- @return number
function M.pass_at_k(n, c, k)
  if k > n or k < 1 or c > n or c < 0 then
    error(("pass_at_k: n %d, c %d, k %d; expected 0 <= c <= n and 1 <= k <= n"):format(n, c, k), 2)
  end
  if n - c < k then return 1 end
  local miss = 1
  for i = n - c + 1, n do miss = miss * (1 - k / i) end
  return 1 - miss
end

--- The answer given most often; of equally frequent ones the first.
--- @param answers table  list with holes where there was no answer
--- @param n integer  its length
--- @return any? answer
--- @return integer votes
function M.majority(answers, n)
  local count, best, most = {}, nil, 0
  for i = 1, n do
    local a = answers[i]
    if a ~= nil then count[a] = (count[a] or 0) + 1 end
  end
  for i = 1, n do
    local a = answers[i]
    if a ~= nil and count[a] > most then best, most = a, count[a] end
  end
  return best, most
end

--- Mean and its standard error.
--- @param list number[]
--- @return number mean
--- @return number error
function M.mean(list)
  local n, sum, square = #list, 0, 0
  for _, x in ipairs(list) do sum = sum + x end
  local mean = n > 0 and sum / n or 0 / 0
  for _, x in ipairs(list) do square = square + (x - mean) ^ 2 end
  return mean, n > 1 and (square / (n - 1) / n) ^ 0.5 or 0 / 0
end

return require "perilune.names"(M, "perilune.tasks.metrics")
