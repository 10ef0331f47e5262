#!/usr/bin/env python
"""Render the curated glyph atlas that the scene generator composes scenes from.

    python tools/make_glyph_atlas.py --font /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

writes ``ovseg/bundled/glyphs.webp`` (one lossless WebP with alpha, square tiles) and
``ovseg/bundled/glyphs.json`` (name -> tiles, synonyms, split). It is needed only to change the
list of concepts: the two files are part of the package, so using ovseg needs neither this tool
nor the font (Debian package ``fonts-noto-color-emoji``, SIL OFL 1.1: see ovseg/bundled/NOTICE.md).

The concepts below are chosen by hand: a name is the word that a person would type for the
picture, not its Unicode name. ``name|synonym|... glyphs`` gives one concept; several glyphs
are several pictures of it. Those under UNSEEN never appear in any
training scene.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT_SIZE = 109  # the only bitmap size that the font holds
BUNDLED = Path(__file__).resolve().parent.parent / "ovseg" / "bundled"

TRAIN = """
dog|puppy 🐕🐶
cat|kitten 🐈🐱
horse 🐎🐴
cow 🐄🐮
pig 🐖🐷
sheep 🐑
goat 🐐
chicken 🐔
duck 🦆
swan 🦢
owl 🦉
eagle 🦅
penguin 🐧
parrot 🦜
flamingo 🦩
peacock 🦚
bat 🦇
wolf 🐺
fox 🦊
raccoon 🦝
bear 🐻
panda 🐼
koala 🐨
tiger 🐅🐯
lion 🦁
monkey 🐒🐵
elephant 🐘
rhinoceros|rhino 🦏
hippopotamus|hippo 🦛
giraffe 🦒
camel 🐪🐫
kangaroo 🦘
zebra 🦓
deer 🦌
rabbit|bunny 🐇🐰
squirrel|chipmunk 🐿
hedgehog 🦔
mouse 🐁🐭
frog 🐸
turtle|tortoise 🐢
lizard 🦎
snake 🐍
crocodile|alligator 🐊
dinosaur 🦕🦖
dragon 🐉🐲
unicorn 🦄
whale 🐋🐳
dolphin 🐬
shark 🦈
fish 🐟🐠
octopus 🐙
crab 🦀
lobster 🦞
snail 🐌
butterfly 🦋
caterpillar 🐛
ant 🐜
bee 🐝
ladybug|ladybird 🐞
spider 🕷
scorpion 🦂
rose 🌹
sunflower 🌻
tulip 🌷
cactus 🌵
palm tree 🌴
tree 🌳
pine tree 🌲
maple leaf 🍁
clover 🍀
mushroom 🍄
potted plant|houseplant 🪴
apple 🍎🍏
pear 🍐
orange 🍊
lemon 🍋
banana 🍌
watermelon 🍉
grapes 🍇
strawberry 🍓
cherries 🍒
peach 🍑
pineapple 🍍
coconut 🥥
kiwi 🥝
tomato 🍅
eggplant|aubergine 🍆
avocado 🥑
broccoli 🥦
cucumber 🥒
chili pepper|hot pepper 🌶
corn 🌽
carrot 🥕
onion 🧅
potato 🥔
croissant 🥐
bread 🍞
pretzel 🥨
cheese 🧀
chicken leg|drumstick 🍗
hamburger|burger 🍔
french fries|fries 🍟
pizza 🍕
hot dog 🌭
sandwich 🥪
taco 🌮
fried egg 🍳
popcorn 🍿
sushi 🍣
ice cream 🍦🍨
donut|doughnut 🍩
cookie 🍪
cake|birthday cake 🎂🍰
cupcake|muffin 🧁
pie 🥧
chocolate|chocolate bar 🍫
candy 🍬
lollipop 🍭
coffee|cup of coffee ☕
teapot 🫖
wine glass 🍷
beer|beer mug 🍺
bottle|champagne bottle 🍾
bowl 🥣
spoon 🥄
knife|kitchen knife 🔪
car|automobile 🚗🚙
taxi|cab 🚕🚖
bus 🚌🚍
ambulance 🚑
fire truck|fire engine 🚒
truck|lorry 🚚🚛
tractor 🚜
race car 🏎
motorcycle|motorbike 🏍
scooter|moped 🛵
bicycle|bike 🚲
skateboard 🛹
train 🚆🚂
tram 🚋🚊
helicopter 🚁
airplane|plane|aeroplane ✈🛩
rocket 🚀
sailboat|sailing boat ⛵
ship 🚢
boat|motorboat 🚤🛥
anchor ⚓
traffic light 🚦🚥
stop sign 🛑
house|home 🏠🏡
castle 🏰
church ⛪
tent ⛺
ferris wheel 🎡
volcano 🌋
mountain 🏔⛰
moon 🌙
sun ☀🌞
cloud ☁
rainbow 🌈
snowflake ❄
lightning|lightning bolt ⚡
fire|flame 🔥
water drop 💧
umbrella ☂☔
globe|earth 🌍🌎
soccer ball ⚽
basketball 🏀
baseball ⚾
tennis racket|tennis ball 🎾
volleyball 🏐
kite 🪁
dice 🎲
teddy bear 🧸
trophy 🏆
guitar 🎸
violin 🎻
trumpet 🎺
drum 🥁
piano 🎹
microphone 🎤🎙
headphones 🎧
bell 🔔
tv|television 📺
camera 📷📸
telephone ☎
cell phone|phone|smartphone 📱
laptop 💻
keyboard ⌨
battery 🔋
light bulb 💡
candle 🕯
book 📕📗
envelope|letter ✉
mailbox 📫
package|cardboard box 📦
pencil ✏
paintbrush 🖌
scissors ✂
calendar 📅
trash can|wastebasket 🗑
lock|padlock 🔒
key 🔑🗝
hammer 🔨
axe 🪓
saw 🪚
wrench|spanner 🔧
gear|cogwheel ⚙
magnet 🧲
ladder 🪜
microscope 🔬
syringe 💉
door 🚪
bed 🛏
couch|sofa 🛋
chair 🪑
toilet 🚽
broom 🧹
basket 🧺
bucket 🪣
toothbrush 🪥
window 🪟
shopping cart 🛒
glasses|eyeglasses 👓
sunglasses 🕶
shirt|t-shirt 👕
tie|necktie 👔
jeans|trousers 👖
scarf 🧣
socks 🧦
dress 👗
handbag|purse 👜👛
backpack 🎒
suitcase 🧳
shoe 👞👟
boot 👢🥾
hat 👒🎩
cap|baseball cap 🧢
crown 👑
gem|jewel 💎
watch|wristwatch ⌚
clock|alarm clock ⏰
balloon 🎈
gift|present 🎁
christmas tree 🎄
pumpkin|jack-o-lantern 🎃
sword 🗡
shield 🛡
robot 🤖
skull 💀
ghost 👻
alien 👽
snowman ⛄☃
tooth 🦷
bone 🦴
"""

UNSEEN = """
leopard 🐆
llama 🦙
bison 🦬
sloth 🦥
otter 🦦
skunk 🦨
squid 🦑
beetle 🪲
turkey 🦃
dove 🕊
hibiscus 🌺
lotus 🪷
mango 🥭
blueberries 🫐
garlic 🧄
bagel 🥯
waffle 🧇
bacon 🥓
dumpling 🥟
glass of milk|milk 🥛
pickup truck 🛻
sled 🛷
roller skate 🛼
ufo|flying saucer 🛸
mosque 🕌
carousel|merry-go-round 🎠
saxophone 🎷
accordion 🪗
banjo 🪕
dartboard 🎯
ruler 📏
toolbox 🧰
test tube 🧪
stethoscope 🩺
thermometer 🌡
abacus 🧮
bow and arrow 🏹
lipstick 💄
feather 🪶
compass 🧭
"""


def parse(text: str, split: str) -> list[dict]:
    """Concepts of one group, in the order written.

    Args:
        text: lines ``name|synonym|... glyphs``.
        split: "train" or "unseen", kept with each concept.

    Returns:
        One dict per concept: name, synonyms, split, glyphs (characters).
    """
    concepts = []
    for line in text.strip().splitlines():
        words, glyphs = line.rsplit(" ", 1)
        name, *synonyms = words.split("|")
        concepts.append({"name": name, "synonyms": synonyms, "split": split, "glyphs": list(glyphs)})
    return concepts


def render(glyph: str, font: ImageFont.FreeTypeFont, tile_px: int) -> Image.Image:
    """One glyph, cropped to its ink and centred in a square RGBA tile with a 1 px margin.

    Raises:
        ValueError: the font has no picture for this character.
    """
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), glyph, font=font, embedded_color=True)
    box = canvas.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox()
    if box is None or (box[2] - box[0]) < 20:
        raise ValueError(f"the font has no picture for {glyph!r} (U+{ord(glyph):X}): drop it")
    ink = canvas.crop(box)
    scale = (tile_px - 2) / max(ink.size)
    size = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
    # premultiplied resampling ("RGBa"): no dark fringe from transparent pixels
    ink = ink.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    # 32 levels of colour and 16 of opacity: invisible once composed, and half the file size
    red, green, blue, alpha = ink.split()
    colours = [c.point(lambda v: min(255, (v + 4) // 8 * 8)) for c in (red, green, blue)]
    ink = Image.merge("RGBA", [*colours, alpha.point(lambda v: (v + 8) // 17 * 17)])
    tile = Image.new("RGBA", (tile_px, tile_px), (0, 0, 0, 0))
    tile.paste(ink, ((tile_px - size[0]) // 2, (tile_px - size[1]) // 2))
    return tile


def main(argv: list[str] | None = None) -> int:
    """Render every concept and write the atlas and its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--font", type=Path, required=True, help="path of NotoColorEmoji.ttf")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="folder to write to")
    parser.add_argument("--tile", type=int, default=96, help="tile side in pixels (default 96)")
    parser.add_argument("--columns", type=int, default=24, help="tiles in a row of the atlas")
    args = parser.parse_args(argv)
    if not args.font.is_file():
        parser.error(f"no font at {args.font}: apt-get install fonts-noto-color-emoji, or pass it")

    font = ImageFont.truetype(str(args.font), FONT_SIZE)
    concepts = parse(TRAIN, "train") + parse(UNSEEN, "unseen")
    names = [concept["name"] for concept in concepts]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        parser.error(f"names given twice: {doubled}")

    tiles: list[Image.Image] = []
    for concept in concepts:
        glyphs = concept.pop("glyphs")
        concept["codepoints"] = [f"{ord(glyph):X}" for glyph in glyphs]
        concept["tiles"] = list(range(len(tiles), len(tiles) + len(glyphs)))
        tiles += [render(glyph, font, args.tile) for glyph in glyphs]

    rows = -(-len(tiles) // args.columns)
    atlas = Image.new("RGBA", (args.columns * args.tile, rows * args.tile), (0, 0, 0, 0))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, args.columns)
        atlas.paste(tile, (column * args.tile, row * args.tile))
    # exact=False zeroes the colour of transparent pixels, which nothing reads
    atlas.save(args.out / "glyphs.webp", lossless=True, quality=100, method=6, exact=False)
    table = {
        "source": "Noto Color Emoji (SIL OFL 1.1), rendered by tools/make_glyph_atlas.py",
        "tile_px": args.tile,
        "columns": args.columns,
        "concepts": concepts,
    }
    lines = ",\n".join("    " + json.dumps(concept, ensure_ascii=False) for concept in concepts)
    head = {key: value for key, value in table.items() if key != "concepts"}
    text = json.dumps(head, indent=2)[:-2] + ',\n  "concepts": [\n' + lines + "\n  ]\n}\n"
    json.loads(text)
    (args.out / "glyphs.json").write_text(text, encoding="utf-8")
    size_kb = (args.out / "glyphs.webp").stat().st_size / 1000
    print(f"{len(concepts)} concepts, {len(tiles)} tiles, {size_kb:.0f} kB in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
