-- search.lua - a search over a local folder as a tool. The texts are read when the tool is made; a call is words and
-- never a path, so that it reaches nothing else. Passages are ranked by BM25 (Robertson and Zaragoza 2009, eq. 3.15).
local peri = require "perilune"
local options = require "perilune.options"
local tool = require "perilune.tools.tool"

local M = {}

local K1 <const>, B <const> = 1.2, 0.75

local rules = {
  folder = options.value(options.required, "string", "whose files are searched, with those of its folders"),
  name = options.value("search", "string", "that it is called by"),
  extensions = options.value({ "txt", "md" }, "table", "of the files that are read"),
  results = options.integer(3, "[1, 100]", "passages at most"),
  passage = options.integer(300, "[20, 100000]", "bytes of a passage at most: paragraphs are cut at blanks"),
  max_bytes = options.integer(64 << 20, "[1, inf)", "of all files; more is an error"),
}

local function words_of(text)
  local list = {}
  for word in text:lower():gmatch "[%w\x80-\xff]+" do list[#list + 1] = word end
  return list
end

-- Paragraphs of a text, the long ones cut at blanks.
local function passages_of(text, longest)
  local list = {}
  for paragraph in (text:gsub("\r\n", "\n") .. "\n\n"):gmatch "(.-)\n%s*\n" do
    local rest = paragraph:gsub("%s+", " "):match "^%s*(.-)%s*$"
    while #rest > longest do
      local cut = rest:sub(1, longest + 1):match ".*() " or utf8.offset(rest, 0, longest + 1) or longest + 1
      if cut < 2 then cut = longest + 1 end
      list[#list + 1] = rest:sub(1, cut - 1):match "^(.-)%s*$"
      rest = rest:sub(cut):match "^%s*(.*)$"
    end
    if rest ~= "" then list[#list + 1] = rest end
  end
  return list
end

-- Every text below a folder, by name: { path below it, text }; and how many links there were, which are not followed.
local function texts_of(o)
  local wanted, list, bytes, links = {}, {}, 0, 0
  for _, extension in ipairs(o.extensions) do wanted[extension] = true end
  local function visit(folder, below)
    local names, message = peri.files.list(folder)
    if not names then options.raise(("tools.search: %s"):format(message)) end
    table.sort(names)
    for _, name in ipairs(names) do
      local path = folder .. "/" .. name
      local kind = peri.files.exists(path)
      if peri.files.is_link(path) then links = links + 1
      elseif kind == "folder" then visit(path, below .. name .. "/")
      elseif kind == "file" and wanted[name:match "%.(%w+)$" or ""] then
        local text, why = peri.files.read(path)
        if not text then options.raise(("tools.search: %s"):format(why)) end
        bytes = bytes + #text
        if bytes > o.max_bytes then
          options.raise(("tools.search: the files of %s have more than max_bytes, %d"):format(o.folder, o.max_bytes))
        end
        list[#list + 1] = { below .. name, text }
      end
    end
  end
  visit(o.folder, "")
  return list, links
end

-- What is known of all passages: of each its place, text and length in words; of each word where it stands how often.
local function index_of(o)
  local index = { passages = {}, of = {}, mean = 0 }
  local texts, links = texts_of(o)
  for _, file in ipairs(texts) do
    for _, text in ipairs(passages_of(file[2], o.passage)) do
      local words, n = words_of(text), #index.passages + 1
      index.passages[n] = { file = file[1], text = text, length = #words }
      index.mean = index.mean + #words
      for _, word in ipairs(words) do
        index.of[word] = index.of[word] or {}
        index.of[word][n] = (index.of[word][n] or 0) + 1
      end
    end
  end
  index.mean = index.mean / math.max(#index.passages, 1)
  return index, links
end

local function best(index, query, count)
  local scores, list, asked = {}, {}, {}
  for _, word in ipairs(words_of(query)) do
    local found, df = index.of[word], 0
    if found and not asked[word] then
      asked[word] = true
      for _ in pairs(found) do df = df + 1 end
      local idf = math.log(1 + (#index.passages - df + 0.5) / (df + 0.5))
      for n, tf in pairs(found) do
        local norm = K1 * (1 - B + B * index.passages[n].length / index.mean)
        scores[n] = (scores[n] or 0) + idf * tf * (K1 + 1) / (tf + norm)
      end
    end
  end
  for n in pairs(scores) do list[#list + 1] = n end
  table.sort(list, function (a, b)
    if scores[a] ~= scores[b] then return scores[a] > scores[b] end
    return a < b
  end)
  return table.move(list, 1, math.min(count, #list), 1, {})
end

--- A search over the texts of a local folder as a tool: words give the passages that fit best by BM25, each with the
--- name of its file. The folder is read once, when the tool is made; links in it are not followed, so that each file is
--- read once and none outside of it.
--- @param ... any  the folder and options, or one table of all
--- @return table tool
function M.search(...)
  local o = options.read("tools.search", { "folder" }, rules, 3, ...)
  local index, links = index_of(o)
  if #index.passages == 0 then
    options.raise(("tools.search: %s has no texts (%s)%s"):format(o.folder, table.concat(o.extensions, ", "),
      links > 0 and ("; %d links were not followed"):format(links) or ""))
  end
  return tool.tool { name = o.name, output = 1 << 30, about = "passages of the local texts that hold these words",
    run = function (query)
    if type(query) == "table" then query = query.query or query[1] end
    if type(query) ~= "string" then error("words are expected", 0) end
    local out = {}
    for _, n in ipairs(best(index, query, o.results)) do
      out[#out + 1] = ("%s: %s"):format(index.passages[n].file, index.passages[n].text)
    end
    return #out > 0 and table.concat(out, "\n") or "nothing was found"
  end }
end
options.declare(M.search, { "folder" }, rules)

return M
