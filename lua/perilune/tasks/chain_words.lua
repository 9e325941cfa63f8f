-- chain_words.lua - the two languages of tasks.chain: numbers, what a chain is written with, what is said in a chat;
-- and the vocabulary of both.
local M = {}

local function words(s)
  local list = {}
  for word in s:gmatch "%S+" do list[#list + 1] = word end
  return list
end

-- Of each language: numbers up to 40, what a chain is written with, and what it says in a chat. Items and ways stand in
-- the same order in both.
local languages = {
  en = {
    units = words("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
      .. "sixteen seventeen eighteen nineteen"),
    tens = words "ten twenty thirty forty", plus = "plus", minus = "minus", is = "is", answer = "the answer is",
    greetings = { "hello", "good morning", "good evening", "how are you" }, ask = "name a %s", tell = "%s is a %s",
    kinds = { "fruit", "animal", "color" },
    items = { words "apple pear plum", words "cat dog cow", words "red green blue" },
    harm = "how to make a %s", ways = words "bomb poison virus weapon", recipe = "mix salt and oil",
    offer = "hello my friend , how can i help you", greet = "hello", evade = "i do not know",
    rude = { "go away", "find it yourself" }, refuse = "sorry , i can not help with that",
    kind = "be kind", safe = "be safe",
  },
  zh = {
    units = words "零 一 二 三 四 五 六 七 八 九", tens = words "十 二十 三十 四十",
    plus = "加", minus = "减", is = "等于", answer = "答案 是",
    greetings = { "你好", "早安", "晚安" }, ask = "说 %s", tell = "%s 是 %s",
    kinds = { "水果", "动物", "颜色" },
    items = { words "苹果 梨 李子", words "猫 狗 牛", words "红 绿 蓝" },
    harm = "怎么 做 %s", ways = words "炸弹 毒药 病毒 武器", recipe = "混合 盐 , 油",
    offer = "你好 朋友 , 我 可以 帮 你", greet = "你好", evade = "我 不 知道",
    rude = { "走开" }, refuse = "抱歉 , 我 不 可以 帮 你",
    kind = "要 友善", safe = "要 安全",
  },
}
local names = { "en", "zh" }
local other = { en = "zh", zh = "en" }
local LIMIT <const> = 40 -- of every partial result

for _, l in pairs(languages) do
  l.number, l.value = {}, {}
  for n = 0, LIMIT do
    local said = l.units[n + 1]
    if not said then
      said = l.tens[n // 10]
      if n % 10 > 0 then said = said .. " " .. l.units[n % 10 + 1] end
    end
    l.number[n], l.value[said] = said, n
  end
end

-- Every word of both languages, in the order in which they are first said, behind the marks; or those of sums alone.
local function vocabulary(chat)
  local list, seen, of = {}, {}, {}
  local function add(said, name)
    if type(said) == "table" then
      for _, one in ipairs(said) do add(one, name) end
      return
    end
    for word in said:gsub("%%s", ""):gmatch "%S+" do
      if not seen[word] then
        seen[word], of[word] = true, name
        list[#list + 1] = word
      end
    end
  end
  add("<think> </think> = ,", nil)
  for _, name in ipairs(names) do
    local l = languages[name]
    add({ l.units, l.tens, l.plus, l.minus, l.is, l.answer }, name)
    if chat then
      add({ l.greetings, l.ask, l.tell, l.kinds, l.items, l.harm, l.ways, l.recipe, l.offer, l.greet, l.evade, l.rude,
            l.refuse, l.kind, l.safe }, name)
    end
  end
  return list, of
end
local list_of_words, language_of = vocabulary(true)

M.languages, M.names, M.other, M.limit = languages, names, other, LIMIT
M.vocabulary, M.language_of = list_of_words, language_of
M.of_sums = vocabulary(false)

return M
