"""Slack's names of common emoji: reactions go by name there, not by sign.

Floor:   messaging
Source:  the short names of iamcal/emoji-data, which Slack uses
"""

from functools import lru_cache

_SKINS = {chr(0x1F3FA + number): f"::skin-tone-{number + 1}" for number in range(1, 6)}
_VARIATION = "\ufe0f"
_TABLE = """
👍 +1 👎 -1 👌 ok_hand 👋 wave 🙏 pray 👏 clap 🙌 raised_hands 💪 muscle 🤝 handshake ✌ v 🤞 crossed_fingers
🤟 i_love_you_hand_sign 🤘 the_horns 👈 point_left 👉 point_right 👆 point_up_2 👇 point_down ☝ point_up ✋ hand
🖐 raised_hand_with_fingers_splayed 🖖 spock-hand 👊 facepunch ✊ fist 🤛 left-facing_fist 🤜 right-facing_fist
✍ writing_hand 🤙 call_me_hand 👐 open_hands 🤲 palms_up_together 🫡 saluting_face 🫶 heart_hands
🫰 hand_with_index_finger_and_thumb_crossed 🖕 middle_finger 🤏 pinching_hand 😀 grinning 😃 smiley 😄 smile
😁 grin 😆 laughing 😅 sweat_smile 🤣 rolling_on_the_floor_laughing 😂 joy 🙂 slightly_smiling_face
🙃 upside_down_face 😉 wink 😊 blush 😇 innocent 🥰 smiling_face_with_3_hearts 😍 heart_eyes 🤩 star-struck
😘 kissing_heart 😗 kissing ☺ relaxed 😚 kissing_closed_eyes 😙 kissing_smiling_eyes 🥲 smiling_face_with_tear
😋 yum 😛 stuck_out_tongue 😜 stuck_out_tongue_winking_eye 🤪 zany_face 😝 stuck_out_tongue_closed_eyes
🤑 money_mouth_face 🤗 hugging_face 🤭 face_with_hand_over_mouth 🤫 shushing_face 🤔 thinking_face
🤐 zipper_mouth_face 🤨 face_with_raised_eyebrow 😐 neutral_face 😑 expressionless 😶 no_mouth 😏 smirk
😒 unamused 🙄 face_with_rolling_eyes 😬 grimacing 🤥 lying_face 😌 relieved 😔 pensive 😪 sleepy
🤤 drooling_face 😴 sleeping 😷 mask 🤒 face_with_thermometer 🤕 face_with_head_bandage 🤢 nauseated_face
🤮 face_vomiting 🤧 sneezing_face 🥵 hot_face 🥶 cold_face 🥴 woozy_face 😵 dizzy_face 🤯 exploding_head
🤠 face_with_cowboy_hat 🥳 partying_face 😎 sunglasses 🤓 nerd_face 🧐 face_with_monocle 😕 confused 😟 worried
🙁 slightly_frowning_face ☹ white_frowning_face 😮 open_mouth 😯 hushed 😲 astonished 😳 flushed
🥺 pleading_face 😦 frowning 😧 anguished 😨 fearful 😰 cold_sweat 😥 disappointed_relieved 😢 cry 😭 sob
😱 scream 😖 confounded 😣 persevere 😞 disappointed 😓 sweat 😩 weary 😫 tired_face 🥱 yawning_face 😤 triumph
😡 rage 😠 angry 🤬 face_with_symbols_on_mouth 😈 smiling_imp 👿 imp 💀 skull ☠ skull_and_crossbones 💩 hankey
🤡 clown_face 👻 ghost 👽 alien 👾 space_invader 🤖 robot_face 😺 smiley_cat 😸 smile_cat 😹 joy_cat
😻 heart_eyes_cat 🙈 see_no_evil 🙉 hear_no_evil 🙊 speak_no_evil 💋 kiss 🫠 melting_face
🫣 face_with_peeking_eye 🫤 face_with_diagonal_mouth ❤ heart 🧡 orange_heart 💛 yellow_heart 💚 green_heart
💙 blue_heart 💜 purple_heart 🖤 black_heart 🤍 white_heart 🤎 brown_heart 💔 broken_heart
❣ heavy_heart_exclamation_mark_ornament 💕 two_hearts 💞 revolving_hearts 💓 heartbeat 💗 heartpulse
💖 sparkling_heart 💘 cupid 💝 gift_heart 💟 heart_decoration 💯 100 💢 anger 💥 boom 💫 dizzy 💦 sweat_drops
💨 dash 💣 bomb 💬 speech_balloon 💭 thought_balloon 💤 zzz 👀 eyes 👁 eye 🧠 brain 👂 ear 👃 nose 🦶 foot 🦵 leg
👶 baby 👦 boy 👧 girl 👨 man 👩 woman 👴 older_man 👵 older_woman 👮 cop 🕵 sleuth_or_spy 👷 construction_worker
🤴 prince 👸 princess 🦸 superhero 🧙 mage 🧛 vampire 🧟 zombie 💃 dancer 🕺 man_dancing 🏃 runner 🚶 walking
🤷 shrug 🤦 face_palm 🙋 raising_hand 🙅 no_good 🙆 ok_woman 🙇 bow 💁 information_desk_person
🧑‍💻 technologist 👨‍💻 male-technologist 👩‍💻 female-technologist 🤷‍♂ man-shrugging 🤷‍♀ woman-shrugging
🤦‍♂ man-facepalming 🤦‍♀ woman-facepalming 🐶 dog 🐱 cat 🐭 mouse 🐹 hamster 🐰 rabbit 🦊 fox_face 🐻 bear
🐼 panda_face 🐨 koala 🐯 tiger 🦁 lion_face 🐮 cow 🐷 pig 🐸 frog 🐵 monkey_face 🐔 chicken 🐧 penguin 🐦 bird
🐤 baby_chick 🦆 duck 🦅 eagle 🦉 owl 🐺 wolf 🐴 horse 🦄 unicorn_face 🐝 bee 🐛 bug 🦋 butterfly 🐌 snail
🐞 ladybug 🐜 ant 🕷 spider 🐢 turtle 🐍 snake 🐙 octopus 🦀 crab 🐠 tropical_fish 🐟 fish 🐬 dolphin 🐳 whale
🦈 shark 🐘 elephant 🦒 giraffe_face 🐑 sheep 🦙 llama 🐲 dragon_face 🐉 dragon 🦖 t-rex 🐾 feet 🐿 chipmunk
🦔 hedgehog 🌵 cactus 🎄 christmas_tree 🌲 evergreen_tree 🌳 deciduous_tree 🌴 palm_tree 🌱 seedling 🌿 herb
🍀 four_leaf_clover 🍁 maple_leaf 🍂 fallen_leaf 🍄 mushroom 💐 bouquet 🌷 tulip 🌹 rose 🌻 sunflower
🌸 cherry_blossom 🌼 blossom 🌞 sun_with_face 🌝 full_moon_with_face 🌚 new_moon_with_face 🌙 crescent_moon
🌍 earth_africa 🌎 earth_americas 🌏 earth_asia ⭐ star 🌟 star2 ✨ sparkles ⚡ zap ☄ comet 🔥 fire 🌪 tornado
🌈 rainbow ☀ sunny ⛅ partly_sunny ☁ cloud 🌧 rain_cloud ⛈ thunder_cloud_and_rain ❄ snowflake ☃ snowman
⛄ snowman_without_snow 💧 droplet 🌊 ocean ☔ umbrella_with_rain_drops 🍎 apple 🍐 pear 🍊 tangerine 🍋 lemon
🍌 banana 🍉 watermelon 🍇 grapes 🍓 strawberry 🍒 cherries 🍑 peach 🍍 pineapple 🥝 kiwifruit 🍅 tomato
🥑 avocado 🍆 eggplant 🥔 potato 🥕 carrot 🌽 corn 🌶 hot_pepper 🍞 bread 🥐 croissant 🧀 cheese_wedge 🥚 egg
🥓 bacon 🍔 hamburger 🍟 fries 🍕 pizza 🌭 hotdog 🌮 taco 🌯 burrito 🍝 spaghetti 🍜 ramen 🍣 sushi 🍦 icecream
🍩 doughnut 🍪 cookie 🎂 birthday 🍰 cake 🧁 cupcake 🍫 chocolate_bar 🍬 candy 🍭 lollipop 🍿 popcorn ☕ coffee
🍵 tea 🍺 beer 🍻 beers 🥂 clinking_glasses 🍷 wine_glass 🥃 tumbler_glass 🍸 cocktail 🍾 champagne ⚽ soccer
🏀 basketball 🏈 football ⚾ baseball 🎾 tennis 🏐 volleyball 🎱 8ball 🏓 table_tennis_paddle_and_ball
🥊 boxing_glove 🎿 ski 🏆 trophy 🥇 first_place_medal 🥈 second_place_medal 🥉 third_place_medal 🏅 sports_medal
🎖 medal 🎫 ticket 🎨 art 🎬 clapper 🎤 microphone 🎧 headphones 🎵 musical_note 🎶 notes 🎹 musical_keyboard
🥁 drum_with_drumsticks 🎸 guitar 🎺 trumpet 🎲 game_die 🎯 dart 🎳 bowling 🎮 video_game 🧩 jigsaw ♟ chess_pawn
🚗 car 🚕 taxi 🚌 bus 🚑 ambulance 🚒 fire_engine 🚲 bike 🚨 rotating_light 🚂 steam_locomotive 🚆 train2
✈ airplane 🚀 rocket 🛸 flying_saucer 🚁 helicopter ⛵ boat 🚢 ship ⚓ anchor 🚧 construction
🚦 vertical_traffic_light 🗺 world_map 🏠 house 🏢 office 🏥 hospital 🏦 bank 🏭 factory 🏰 european_castle
⛺ tent 🌉 bridge_at_night 🏖 beach_with_umbrella 🏔 snow_capped_mountain ⌚ watch 📱 iphone 💻 computer
⌨ keyboard 🖥 desktop_computer 🖨 printer 🖱 three_button_mouse 💾 floppy_disk 💿 cd 📷 camera 📹 video_camera
📞 telephone_receiver ☎ phone 📺 tv 📻 radio ⏰ alarm_clock ⏱ stopwatch ⏳ hourglass_flowing_sand ⌛ hourglass
📡 satellite_antenna 🔋 battery 🔌 electric_plug 💡 bulb 🔦 flashlight 🕯 candle 🗑 wastebasket
💸 money_with_wings 💵 dollar 💶 euro 💰 moneybag 💳 credit_card 💎 gem ⚖ scales 🔧 wrench 🔨 hammer
⚒ hammer_and_pick 🛠 hammer_and_wrench ⛏ pick 🔩 nut_and_bolt ⚙ gear 🧲 magnet 🔫 gun 🛡 shield 🔮 crystal_ball
🔭 telescope 🔬 microscope 💊 pill 💉 syringe 🧬 dna 🧪 test_tube 🌡 thermometer 🧹 broom 🔑 key 🗝 old_key
🚪 door 🛏 bed 🎁 gift 🎈 balloon 🎀 ribbon 🎊 confetti_ball 🎉 tada 🎃 jack_o_lantern ✉ email 📧 e-mail
📩 envelope_with_arrow 📨 incoming_envelope 📦 package 📫 mailbox 📜 scroll 📄 page_facing_up 📃 page_with_curl
📊 bar_chart 📈 chart_with_upwards_trend 📉 chart_with_downwards_trend 📅 date 📆 calendar 🗓 spiral_calendar_pad
📋 clipboard 📁 file_folder 📂 open_file_folder 🗂 card_index_dividers 🗄 file_cabinet 📰 newspaper 📓 notebook
📔 notebook_with_decorative_cover 📕 closed_book 📖 book 📗 green_book 📘 blue_book 📙 orange_book 📚 books
🔖 bookmark 🔗 link 📎 paperclip 📐 triangular_ruler 📏 straight_ruler 📌 pushpin 📍 round_pushpin ✂ scissors
🖊 lower_left_ballpoint_pen ✏ pencil2 📝 memo 🔍 mag 🔎 mag_right 🔒 lock 🔓 unlock 🔐 closed_lock_with_key
🧾 receipt 🏷 label 📢 loudspeaker 📣 mega 🔔 bell 🔕 no_bell ✅ white_check_mark ☑ ballot_box_with_check
✔ heavy_check_mark ❌ x ❎ negative_squared_cross_mark ✖ heavy_multiplication_x ➕ heavy_plus_sign
➖ heavy_minus_sign ➗ heavy_division_sign ❓ question ❔ grey_question ❗ exclamation ❕ grey_exclamation
‼ bangbang ⁉ interrobang ⚠ warning ⛔ no_entry 🚫 no_entry_sign 🛑 octagonal_sign 🆗 ok 🆕 new 🆒 cool 🆓 free
🆘 sos ♻ recycle 🔴 red_circle 🟠 large_orange_circle 🟡 large_yellow_circle 🟢 large_green_circle
🔵 large_blue_circle 🟣 large_purple_circle ⚫ black_circle ⚪ white_circle 🟥 large_red_square
🟩 large_green_square 🟨 large_yellow_square 🟦 large_blue_square ⬆ arrow_up ⬇ arrow_down ⬅ arrow_left
➡ arrow_right ↩ leftwards_arrow_with_hook ↪ arrow_right_hook 🔄 arrows_counterclockwise 🔁 repeat
🔃 arrows_clockwise ▶ arrow_forward ⏸ double_vertical_bar ⏹ black_square_for_stop
⏭ black_right_pointing_double_triangle_with_vertical_bar 🔙 back 🔚 end 🔜 soon 🔝 top ♾ infinity ☯ yin_yang
☮ peace_symbol ⚛ atom_symbol ™ tm © copyright ® registered 🏁 checkered_flag 🚩 triangular_flag_on_post
🏳 waving_white_flag 🏴 waving_black_flag 🏴‍☠ pirate_flag 🏳‍🌈 rainbow-flag 1⃣ one 2⃣ two 3⃣ three 4⃣ four
5⃣ five 6⃣ six 7⃣ seven 8⃣ eight 9⃣ nine 0⃣ zero 🔟 keycap_ten #⃣ hash
"""


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    words = _TABLE.split()
    return dict(zip(words[::2], words[1::2], strict=True))


def reaction_name(emoji: str) -> str | None:
    """Slack's name of an emoji, or of what is a name already (`:tada:`); None for a sign that is not known here."""
    emoji = emoji.strip().replace(_VARIATION, "")
    name = emoji.strip(":").lower().replace(" ", "_")
    if name and name.isascii() and all(character.isalnum() or character in "_-+:'" for character in name):
        return name
    skin = next((tone for tone in _SKINS if tone in emoji), None)
    found = _names().get(emoji.replace(skin, "") if skin else emoji)
    return None if found is None else found + (_SKINS[skin] if skin else "")
