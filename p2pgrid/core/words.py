"""The words that job, node and grid names are made of.

Rule 1: 1,024 adjectives and 1,024 nouns, lower-case ASCII, 3 to 8 letters, none in both lists, none that hurts.
Rule 2: the order is part of the format. The name of a job is derived from its id, so a word that moves or changes
renames jobs, and two versions would show two names for one job.
"""

ADJECTIVES: tuple[str, ...] = tuple(
    """
    abiding ablaze able active actual acute adept adroit adult afloat agile agreed airborne airy alert alike alive
    alpine amazing amber ambient ample amused ancient angular annual apt aquatic arable arboreal arched arctic ardent
    arid artful artistic ashen aspiring assured astral astute atomic attuned august autumnal avid awaited awake aware
    awash azure backed balanced balmy basic bated beady beaming becoming bedded beige beloved best better big binary
    blank blazing blended blissful blithe blooming blue blunt blushing bold bonny bosky bouncy bracing brainy branched
    brave brazen breathy breezy brief bright brimming brisk bristly broad bronze brown bubbly bucolic budding buoyant
    burly bushy busy buttery buzzing calm candid candied canny capable carefree careful caring casual cedar central
    certain charming chaste chatty cheerful cheery cherry cherubic chestnut chief chilly chipper choice choral chubby
    circular civic civil clarion classic classy clean clear clement clever cloudy clubby coastal cobalt cogent coiled
    colorful comfy common compact complete composed concise concrete content cool cooling copper coral corded cordial
    cosmic cosy cottony courtly cozy crafty creamy creative crimson crisp crucial crunchy cubic cuddly curious curly
    current cursive curved cyan dainty dapper dappled daring dark dashing dawning daylit dazzling dear decent definite
    deft delicate deluxe dense detailed devoted dewy digital diligent distant distinct diurnal docile dotted double
    downy dramatic drawn dreamt dreamy drifting driven droll dry due dulcet durable dusky dusty dutiful dynamic eager
    early earnest earthen earthly earthy eastern easy ebony ecstatic edible educated eerie elastic elated elder
    elective electric elegant elfin eloquent embossed emerald eminent empty enamored endless enduring engaged engraved
    enormous enough equable equal erudite esteemed eternal ethereal even eventful everyday evident exact exalted
    exciting exotic expert express fabled fabric faceted facile fair faithful familiar famous fancy fast fawn fearless
    feathery feisty fertile fervent festal festive fiery filmy final fine finest finite firm first fit fitting fizzy
    flaky flaming flat flaxen fleecy fleet flexible floating floral floury flowing fluent fluffy flush flying focal
    focused foggy folksy fond foremost formal forward fragrant freckled free frequent fresh friendly frosted frosty
    frothy frugal fruitful full fulsome fun funny furry fuzzy gabled gallant game gauzy general generous genial gentle
    genuine gifted gilded giving glacial glad glassy gleaming gleeful gliding glossy glowing glowy golden good
    graceful gracious grainy grand granite grassy grateful great green grey grinning gritty groovy grounded growing
    guided gusty halcyon hale halved handmade handsome handy happy hardy hazel hazy healing healthy hearted hearty
    heathery heavenly helpful herbal heroic hidden high highland hilly hinged historic hollow homely honest honeyed
    honored hooded hopeful huge humane humble humid humming hushed icy ideal idyllic immense indigo infinite informal
    ingrown inlaid innate inner inspired intact intense intent intrepid inviting inward iron ironclad ivory jade
    jaunty jazzy jeweled jocular jokey joking jolly jovial joyful joyous jubilant juicy jumbo just keen key keyed
    khaki kind kindly kinetic knightly knitted knotty known lambent large lasting lateral latest latticed laughing
    lavender lavish leading leafy lean learned leaved ledged leisured lettered level liberal lidded light likable
    lilac lilting limber limpid linear lined linen linked liquid lit literal literate little live lively loamy local
    lofty logical long loud lovable lovely loving loyal lucent lucid lucky luminous lunar lush lyric lyrical madcap
    magenta magic magical magnetic magnific main majestic major mango manifold many maple marble marbled marine
    maritime maroon massive matching matted mature mauve meadowy mellow melodic merry metallic mighty mild milky
    mindful mini minor minty mirthful misty mobile modal modern modest molten moonlit moral mossy motley mottled
    moving muffled muted mutual mystic mythic mythical narrow national natural nautical naval near nearby neat nectar
    needed neutral new newborn next nice nifty nimble noble nomadic normal northern notable novel numeric nutty oaken
    oblong obvious oceanic ochre octagon odd offbeat onward opal opaline open optic optimal oracular orange orbital
    orderly organic original ornate outdoor outer oval overt owlish painted pale palmy paper parallel pastel pastoral
    patient pausing peaceful peachy pearl pearly pebbly peerless peppy perfect perky personal petite piebald pine pink
    piquant pithy placid plain playful pleasant pleased plenty pliable pliant plucky plum plural plush poetic poised
    polar polished polite popular portable posh positive potent powdery powerful precious precise premier present
    pretty prim primal prime pristine prized prompt proper proud proven prudent public punctual pure purple puzzling
    quaint quick quiet quilted quirky quixotic racing radial radiant rainy random rapid rapt rare rational ready real
    recent regal regular related relaxed reliable relished renowned resonant restful rhythmic rich right ringing ripe
    rippling rising roaming robust rocky rolling romantic roomy rosy rotating round rousing roving royal ruby ruddy
    rugged running rural russet rustic rustling sacred saffron sage salient salty sanded sandy sapient sapphire sassy
    satin saucy savory scarlet scenic scented seaside seasonal second secure select senior sensible serene serious
    shaded shady shaped sharp sheer shelled shining shiny short showy shrewd shy silent silken silky silver silvery
    simple sincere singing sizable skilled skyward sleek sleepy slender slim slow small smart smiling smooth snappy
    snowy snug soaring sociable social soft solar solemn solid solo sonic sonorous soothing sound southern spacious
    spangled spare sparing sparkly special speckled speedy spicy spiral spirited splendid spotless spotted spring
    springy spruce spry square stable standing starlit starry stately static steady steep stellar still stirring stoic
    stony storied stormy stout striking striped strong studious stunning sturdy suave sublime subtle sudden sugary
    summer sunlit sunny super superb supple supreme sure surreal swaying sweet swell swift swirling sylvan tactful
    tall tame tan tangible tangy tart tasty tawny teal tender tenfold textured thankful thin thorough thrifty thriving
    tidal tidy timber timeless timely tiny toasty tonal topaz topical total touching tough tracing tranquil trim
    triple tropical true trusted trusty truthful tufted tuneful turning twilit twin twinkly twirling ultra umber
    unafraid unbiased unbroken uncommon unified unique united unlike unspoilt untold upbeat upland upper upright
    upward urban urbane usable useful usual utmost valiant valid valued vast vaulted velvet velvety verbal verdant
    vernal versed vertical viable vibrant vigilant vintage violet virtual visible visiting vital vivid vocal volcanic
    voluble waggish waking warm watchful watery wavy wealthy wee weighty welcome well western whole wide wild willing
    willowy windy winged winning winsome wintry wise wistful witty wondrous wooded wooden woodsy woolen woolly
    workable worldly worthy woven wry yearly yellow yielding young youthful zany zealous zesty zigzag zippy zonal
    """.split(),
)

ANIMALS: tuple[str, ...] = tuple(
    """
    adder alpaca anteater antelope badger barnacle beagle bear bee beetle beluga bison blackcap bluebird bluefin boar
    bobcat buffalo bullfrog buzzard camel canary capybara caribou carp catbird catfish chamois cheetah chipmunk cicada
    clam collie condor coot corgi cougar coyote crab crane crayfish cricket crow cuckoo curlew dingo dipper dolphin
    donkey dormouse dove duck eagle eel egret eider eland elephant elk emu falcon ferret finch firefly flamingo
    flounder fox frog fulmar gannet gazelle gecko gerbil gibbon giraffe goat godwit goldfish goose gopher goshawk
    grebe grouper grouse gull halibut hamster hare harrier hawk hedgehog heron herring hippo hoopoe hornbill horse
    hound husky ibex ibis iguana impala jackal jackdaw jaguar jay kangaroo kestrel kingfish kite kitten kiwi koala koi
    lacewing ladybird ladybug lamb lapwing lark lemming lemur leopard linnet lion lizard llama lobster loon lorikeet
    lory lynx macaw magpie mallard mammoth manatee mantis marmoset marmot marten martin mastodon meerkat merlin minnow
    mole mongoose moose moth mouse mustang narwhal newt nightjar nuthatch ocelot octopus okapi opossum oriole oryx
    osprey ostrich otter owl oyster panda pangolin panther parakeet parrot peacock peahen pelican penguin perch petrel
    pheasant pigeon pika pike pipit platypus plover pony porpoise possum puffin puma python quail quetzal quokka quoll
    rabbit raccoon ram raven ray reindeer rhino robin rook rooster sable salmon seahorse seal shark sheep shrew
    skylark sloth snail snipe sparrow squid squirrel starfish starling stilt stingray stoat stork sturgeon sunbird
    swallow swan tapir tern terrier thrush tiger toad tortoise toucan treefrog triton trout tuna turtle vole wallaby
    walrus warbler waxwing weasel whale wildcat wolf wombat wren yak zebra
    """.split(),
)
"""Nodes and grids are named after animals only."""

NOUNS: tuple[str, ...] = ANIMALS + tuple(
    """
    abacus abbey acacia acorn acre adobe agate airship alcove alder alloy almanac almond alp altar alto anchor anise
    anthem anvil apple apricot apron arbor arcade arch archive arena aria ark armchair arrow aspen aster atlas atoll
    atom attic aurora autumn avenue avocado axle azalea badge bagel bakery balcony ballad balloon balsa bamboo banana
    banjo banner barge bark barley barn barrel basil basin basket bay bayou beach beacon bead beam bean bell bench
    berry birch biscuit blanket blaze blossom boat bobbin bonfire bonnet book boot bough boulder bowl box braid
    bramble brass bread breeze brick bridge brook broom brush bubble bucket bud bugle bungalow buoy burrow butter
    button cabbage cabin cable cactus cairn cake calendar camera camp campus canal candle canoe canopy canteen canvas
    canyon cape caramel caravan cargo carnival carousel carrot cart cascade cashew castle cave cavern celery cello
    chalet chalk chapel chapter charm chimney chorus cider cinema cinnamon circle citrus city clarinet clay clearing
    cliff clip clock cloth cloud clove coast cobble cocoa coconut coffee coin colony comb comet compass cone cookie
    cork corner cornet cosmos cottage cotton couch court cove cradle crater crayon creek crescent cross crystal cup
    dairy daisy dale dam dance dawn day deck delta den depot desert desk dew dial diamond dinghy disc dish dock dome
    door dory dream drum duet dune dusk echo eclipse eddy elm ember emblem engine epic evening fable factory farm
    feast feather felt fen fence fennel fern ferry festival fiddle field fig film fir fire flag flagon flame flannel
    flask flax fleece flint floe flora flour flower flute foam fog font forest forge fork fort forum fountain frame
    frost fruit furrow galaxy gale galleon gallery garden garland garlic garnet gate gem geode ginger glacier glade
    glass glen globe glove goblet gold gondola gong granary grape graph grass grid grove guitar gulf hail hall hamlet
    hammock hamper handle harbor harp harvest hat hatch haven hawthorn hay heart hearth heath heather hedge helm
    helmet herb hickory hill hive holly honey hood hoop horizon horn hostel hotel house hull hut hymn iceberg icicle
    igloo ink inlet inn iris island isle ivy jacket jam jar jasmine jersey jetty jewel journal journey jubilee jug
    juice jungle juniper kayak keel kelp kernel kettle keyboard kiln kimono kitchen knoll knot lace ladder ladle
    lagoon lake lamp lane lantern larch latch lattice laurel lawn leaf ledge legend lemon lens letter lettuce library
    lily lime lobby locket lodge loft loom lotus lounge lunch lupin lute lyre magnet manor mantle map march margin
    marina market marsh mast maze meadow medal medley melon menu mesa meteor midnight mill mine mint mirror mist moat
    moment moon moor morning mosaic moss motor mountain mug mulberry mural museum mushroom music mustard napkin needle
    nest net nettle nickel night noodle noon notebook nova nugget nursery nutmeg oak oar oasis oat oboe ocean olive
    omelet onion onyx opera orbit orchard orchid organ outpost oven paddle paint painting palace palette palm pancake
    panel papaya paprika parade parcel park parlor parsley passage pastry pasture patch path patio pavilion peach peak
    peanut pear pebble pecan pedal peony pepper petal piano picnic pier pillar pillow pilot pixel pizza planet plank
    plant plateau plaza plume pocket poem point pond pool poplar poppy porch port portal portrait postcard potato
    potter pottery prairie prelude pretzel primrose prism puddle pulley pump pumpkin puzzle pyramid quarry quartet
    quartz quay quest quill quilt quiver radio radish raft rain rainbow raisin ramp ranch ravine reed reef relay relic
    ribbon rice ridge ring ripple river road rocket rose rosemary rosette rowboat rug rune rye saddle sail salsa salt
    sand sandal sapling sash satchel scale scarf school science scone scroll sea season seaweed sesame shade shadow
    shale shawl shed shelf shell shelter shield ship shore signal silk silo sketch ski sky sled slipper slope smoke
    snow snowfall soap sofa solstice song sonnet soup spark spice spinet spire sprig sprout stadium stage stair stamp
    star station statue steel step stitch stone story strand stream street string studio sugar suitcase summit sun
    sundial sunrise sunset sycamore symphony table tablet tandem tango tapestry tea teapot temple tempo tent terrace
    theater thicket thimble thistle thread thunder thyme ticket tide tile toast tomato torch totem tower town toy
    track trail train tram tray treasure tree trellis trident trinket trio trolley trophy trumpet tube tulip tundra
    tunnel turnip twig twilight umbrella union universe valley vanilla vase veil village vine vineyard viola violin
    vista voice volcano volume voyage waffle wagon wall walnut waltz wardrobe water wave wax west wheat wheel whistle
    wicker willow wind windmill window wing winter wonder wood wool workshop world wreath yacht yam yard yarn yarrow
    year yogurt zenith zinc zodiac
    """.split(),
)
