"""The words of the tasks that made.py makes."""

from __future__ import annotations

NOUNS = tuple(
  (x, y)
  for x, _, y in (
    pair.partition("/")
    for pair in (
      "dog/dogs cat/cats teacher/teachers window/windows farmer/farmers "
      "bridge/bridges doctor/doctors bottle/bottles picture/pictures "
      "river/rivers key/keys student/students house/houses garden/gardens "
      "letter/letters horse/horses singer/singers wall/walls chair/chairs "
      "lawyer/lawyers tree/trees boat/boats book/books painter/painters "
      "ship/ships guest/guests neighbour/neighbours flower/flowers "
      "engine/engines soldier/soldiers road/roads table/tables "
      "pilot/pilots lamp/lamps tower/towers farm/farms writer/writers "
      "stone/stones bird/birds driver/drivers"
    ).split()
  )
)
LINKS = ("near", "behind", "beside", "next to", "in front of")

CAPITALS = {
  "France": "Paris",
  "Germany": "Berlin",
  "Italy": "Rome",
  "Spain": "Madrid",
  "Portugal": "Lisbon",
  "Austria": "Vienna",
  "Greece": "Athens",
  "Poland": "Warsaw",
  "Hungary": "Budapest",
  "Ireland": "Dublin",
  "Norway": "Oslo",
  "Sweden": "Stockholm",
  "Denmark": "Copenhagen",
  "Finland": "Helsinki",
  "Belgium": "Brussels",
  "the Netherlands": "Amsterdam",
  "Switzerland": "Bern",
  "the Czech Republic": "Prague",
  "Romania": "Bucharest",
  "Bulgaria": "Sofia",
  "Ukraine": "Kyiv",
  "Russia": "Moscow",
  "Turkey": "Ankara",
  "Egypt": "Cairo",
  "Kenya": "Nairobi",
  "Nigeria": "Abuja",
  "Ethiopia": "Addis Ababa",
  "Ghana": "Accra",
  "Morocco": "Rabat",
  "Algeria": "Algiers",
  "Tunisia": "Tunis",
  "Senegal": "Dakar",
  "Uganda": "Kampala",
  "Zimbabwe": "Harare",
  "Israel": "Jerusalem",
  "Iran": "Tehran",
  "Iraq": "Baghdad",
  "Saudi Arabia": "Riyadh",
  "Jordan": "Amman",
  "Lebanon": "Beirut",
  "Syria": "Damascus",
  "Afghanistan": "Kabul",
  "Pakistan": "Islamabad",
  "Nepal": "Kathmandu",
  "Bangladesh": "Dhaka",
  "Thailand": "Bangkok",
  "Vietnam": "Hanoi",
  "Cambodia": "Phnom Penh",
  "Indonesia": "Jakarta",
  "Malaysia": "Kuala Lumpur",
  "the Philippines": "Manila",
  "China": "Beijing",
  "Japan": "Tokyo",
  "South Korea": "Seoul",
  "North Korea": "Pyongyang",
  "Mongolia": "Ulaanbaatar",
  "Australia": "Canberra",
  "New Zealand": "Wellington",
  "Canada": "Ottawa",
  "the United States": "Washington",
  "Mexico": "Mexico City",
  "Cuba": "Havana",
  "Jamaica": "Kingston",
  "Colombia": "Bogotá",
  "Venezuela": "Caracas",
  "Ecuador": "Quito",
  "Peru": "Lima",
  "Chile": "Santiago",
  "Argentina": "Buenos Aires",
  "Uruguay": "Montevideo",
}

OPPOSITES = tuple(
  (x, y)
  for x, _, y in (
    pair.partition("/")
    for pair in (
      "hot/cold big/small fast/slow early/late happy/sad light/dark "
      "open/closed strong/weak rich/poor young/old wet/dry clean/dirty "
      "full/empty hard/soft high/low loud/quiet long/short new/old "
      "near/far right/wrong safe/dangerous thick/thin tall/short true/false "
      "up/down wide/narrow win/lose buy/sell push/pull love/hate begin/end "
      "day/night summer/winter black/white first/last inside/outside "
      "victory/defeat war/peace friend/enemy above/below more/less"
    ).split()
  )
)

_LETTERS = "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z"
SERIES = tuple(
  tuple(line.split())
  for line in (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "January February March April May June July August September October "
    "November December",
    "one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen",
    "first second third fourth fifth sixth seventh eighth ninth tenth",
    _LETTERS,
    _LETTERS.lower(),
    " ".join(str(n) for n in range(1, 20)),
    " ".join(str(n) for n in range(2, 32, 2)),
    " ".join(str(n) for n in range(5, 80, 5)),
    " ".join(str(n) for n in range(10, 160, 10)),
    "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
  )
)

NAMES = (
  "John Mary Peter Anna David Sarah Michael Emma Robert Laura James Alice "
  "Thomas Julia Daniel Helen Mark Susan Paul Karen"
).split()
THINGS = (
  "key book coat bag ring watch phone ticket letter map hat glove scarf pen "
  "wallet camera notebook bottle coin umbrella shoe card knife cup basket "
  "lamp brush flute ball toy box drum chain mask rope jar plate spoon towel "
  "doll"
).split()
