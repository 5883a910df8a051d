# ruff: noqa: RUF001 - letters of other scripts are what this is about
"""The commonest small words of languages that share a script, by ISO 639-1 code, for `language`.

Besides the languages that instructions ask for (docs of `language` name them) these are their neighbours, so that
Spanish is not taken for Portuguese, nor Ukrainian for Russian.
"""

from __future__ import annotations

FUNCTION_WORDS: dict[str, frozenset[str]] = {
    code: frozenset(text.split())
    for code, text in {
        "en": """
    the of and to a in is was he for it with as his on be at by i this had not are but from or have an they which one
    you were her all she there would their we him been has when who will more no if out so said what up its about into
    than them can only other new some could time these two may then do first any my now such like our over me even
    most made after also did many before must through back where much your way down should because each just those
    people how too little very make still own see here between both being under never us off don't it's i'm you're
    that's isn't doesn't can't won't let please hello thank thanks yes dear
    """,
        "de": """
    der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat dass
    sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis mehr durch
    man sein wurde wenn ihr ihre kann ich du wir mein dein unser doch schon hier dann weil diese dieser dieses kein
    keine mir dich mich dir uns euch ihm ihnen was wer wo sehr gut ja nein bitte danke
    """,
        "it": """
    di e il la che in a per un è del non una i le da si con sono al come della dei più anche nel alla ma lo gli ha su
    dal o delle se ai nella questo questa essere stato tra io tu lui lei noi voi loro mio tuo suo ci mi ti perché
    quando dove chi cosa molto sempre così fare può hanno era sei siamo ho hai grazie ciao ogni l'italia dell' c'è
    un'altra degli negli dalla sulla poi ancora senza dopo tutti tutto
    """,
        "pt": """
    de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu sua ou
    ser quando muito há nos já está eu também só pelo pela até isso ela entre era depois sem mesmo aos ter seus quem
    nas me esse eles você tinha foram essa num nem suas meu às minha têm numa pelos elas qual nós lhe deles são então
    onde obrigado olá fazer vocês nossa nosso tudo gostaria durante todos todas ano anos ajuda
    """,
        "es": """
    de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si sin sobre
    este ya entre cuando todo esta ser son dos también fue había era muy hasta desde está mi porque qué sólo han yo
    hay vez puede todos así nos ni parte tiene él uno donde bien tiempo mismo ese ahora cada e vida otro después te
    otros aunque esa eso hace otra gobierno tan durante siempre usted gracias hola nosotros
    """,
        "fr": """
    de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont la avec ou cette
    mais on nous comme vous je tu elle ils son sa ses leur leurs aux été être fait c'est d'un d'une l'on n'est qu'il
    j'ai très bien tout tous aussi même sans où si y mon ma mes notre votre deux après avant quand parce encore peut
    entre ces merci bonjour donc
    """,
        "nl": """
    de en van het een in is dat op te zijn met voor niet aan er die als ook om was door maar bij uit naar dan nog wel
    kan worden heeft dit wordt hij ze je we wij ik mijn zijn haar hun ons over tot al meer moet hebben geen deze veel
    zo wat wie waar heel goed
    """,
        "sv": """
    och att det i en jag som på är av för med till den har de inte om ett han men var sig från vi så kan när år säger
    under också efter eller nu där vid mot ska skulle kommer ut får finns vara hade alla andra mycket mer här då sedan
    över bara in blir upp även vad du min din mig dig hon
    """,
        "fi": """
    ja on ei että se oli hän mutta ovat kun joka tai jos niin kuin myös mitä minä sinä me te he ole nyt vain sen sitä
    tämä tämän ne niitä siitä siinä hänen heidän meidän minun sinun jo vielä sekä olla voi voivat ollut olen olet
    olemme mukaan kanssa jälkeen ennen yli ilman koska sitten aina hyvin hyvä paljon kaikki kaikkien joka jotka jossa
    josta joita mikä miten miksi missä eivät en et emme ettei kuitenkin noin kuten tässä tästä sillä silloin moni
    monia enemmän pitää täytyy kiitos hei
    """,
        "sw": """
    ya wa na kwa ni katika la za cha vya kuwa hii hiyo huo hilo hizo hizi huu hao hawa yake yao yangu yetu yako wake
    wao wangu wetu wako lake langu letu zake zao zangu zetu kama lakini pia au si sana tu hivyo kila ili baada kabla
    watu mtu yeye mimi wewe sisi ninyi wao ambao ambayo ambaye alikuwa ilikuwa kutoka hadi bila kwamba nini nani wapi
    jinsi zaidi moja mbili siku wakati bado sasa kisha ndiyo hapana asante habari ndani kuhusu kupitia pamoja hata mwa
    mno
    """,
        "vi": """
    là và của có không các cho một những được trong người với để này khi đã từ tôi bạn chúng ta họ nó anh chị em như
    vào ra đến cũng nhiều rất sẽ đang về trên nhưng thì mà ở lại hơn còn phải nếu vì hay hoặc bởi theo sau trước tại
    đó đây nào gì ai sao thế mình mọi năm ngày làm nhất con cái việc
    """,
        "id": """
    yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya ke karena tersebut bisa ada mereka lebih
    kata tahun sudah atau saat oleh menjadi orang ia telah adalah seperti sebagai bahwa dapat para harus namun kita
    dua satu masih hari hanya mengatakan kepada kami setelah melakukan lalu belum lain dia kalau terjadi banyak
    menurut anda hingga tak baru
    """,
        "tl": """
    ang ng sa na mga at ay ito ko mo siya ako ka kami tayo sila niya nila para hindi ni kay si may mayroon kung pero
    dahil din rin lang lamang po opo iyon isang bawat
    """,
        "tr": """
    ve bir bu da de için ile çok daha ne gibi kadar o ben sen biz siz ama olarak olan var yok en sonra önce her değil
    mi mı mu mü ise ya ki şu kendi ancak hem olduğu oldu
    """,
        "pl": """
    w i z na do nie się jest to że o jak a po od co ale za przez tak czy ze by był była są dla już tylko ich jego jej
    może ma które który która jako ten tej tego tym być
    """,
        "ro": """
    și de la în a cu nu pe este că mai un o din pentru care ce se sunt au fost fi ca sau dar să le lui ei îi când după
    prin această acest foarte
    """,
        "ru": """
    и в не на я что тот быть с он а по это она к но они мы весь который из у то за свой о вы так ты же от как для мой
    его до или если её их был была было были есть бы только уже при чтобы также может когда во со очень где кто чем
    этот эта эти этого нет да ещё еще без под после перед более себя вас нас мне меня тебя
    """,
        "bg": """
    и на в да се за от не е с са по че като до това ще който която което които си но или тя той те ние вие аз ти ни ги
    го му им ѝ има беше бил била били може със във към при само още много так така след преди без когато където какво
    как кой коя всички всеки този тази тези един една едно съм сме сте бъде бяха ли защото ако вече между над под през
    също ми ме къде някой нещо нищо знам моля
    """,
        "uk": """
    і в не на я що з він а по це вона до але вони ми та у то за о ви так ти ж від як для мій його або якщо її їх був
    була було були є би лише вже при щоб також може коли дуже де хто чим цей ця ці цього ні ще без після нас вас мені
    мене тебе який яка яке які
    """,
        "sr": """
    и је у да се на за од са су не то као што али или који која које би ће из по о до га му ја ти он она ми ви они има
    бити био била само још већ када где шта овај ова ово све
    """,
        "hi": """
    है के की में का को से और हैं यह पर ने एक नहीं भी कि जो कर हो था थे थी वह इस तो ही लिए अपने या साथ हम मैं आप वे उस
    इसके उनके गया किया करने होता होती होते रहा रही रहे सकते सकता सकती बहुत जब तक कुछ मेरे मेरा मेरी आपके तुम क्या कैसे
    क्यों लेकिन अपनी अपना उसके द्वारा बाद फिर हूँ हूं जाता जाती जाते करते करता चाहिए में
    """,
        "mr": """
    आहे आणि च्या ची चा चे हे ही हा ते ती तो या मध्ये आहेत होते होता होती नाही पण एक मी आम्ही तुम्ही आपण त्या त्यांच्या
    त्याच्या तिच्या माझ्या माझे माझा माझी तुमच्या आपल्या साठी करून केले केला केली करते करतात असे असा अशी असते असतात
    म्हणून म्हणजे किंवा जे जो की तर काय कसे का खूप सर्व मला तुला त्याला तिला आम्हाला झाले झाला झाली पाहिजे शकता शकतो
    शकते येथे व परंतु तसेच यांनी नंतर आज हवे
    """,
        "ne": """
    छ छन् र को मा का की हो यो ले लाई पनि भएको थियो थिए गर्न गर्ने गरेको हुन हुन्छ गर्छ गर्छन् हुन्छन् तपाईं तपाईंको
    हामी मेरो हाम्रो म उनी उनको उहाँ त्यो यस यसको तर वा भने छैन एक धेरै सबै अनि किनभने जुन के कसरी किन कहाँ सक्छ
    सक्नुहुन्छ सक्छौं गर्नुहोस् गर्नु भयो लागि साथ आफ्नो नै त तिमी छु छौं भन्ने दिन्छ हुने थिइन बाट देखि
    """,
        "ar": """
    في من على إلى أن هذا هذه التي الذي عن مع لا ما كان كانت هو هي كل بين أو ثم قد لم لن بعد قبل عند حتى إذا أنا أنت
    نحن هم ذلك تلك و كما لكن ليس إن أي غير بعض يكون تكون يمكن منذ حيث لأن فقط أيضا أيضًا جدا جدًا هناك هنا كيف لماذا
    متى أين الذين خلال نعم ولا وفي ومن فيها فيه عليه لها له
    """,
        "fa": """
    و در به از که این را با است برای آن یک تا بر هم نیز می ما من او شما آنها خود بود شد شده کرد کردن دارد دارند هستند
    باید یا اگر اما چه هر همه بین پس هیچ کند کنند شود شوند نیست بوده باشد وی ای های ها بسیار چون چرا کجا ولی زیرا
    بیشتر می‌شود می‌کند می‌کنند می‌تواند می‌توانید کنید کنیم دیگر مورد روز نمی
    """,
        "ur": """
    کے کی کا میں ہے سے کو اور ہیں نے یہ پر کہ ایک نہیں بھی کر جو تھا تھی تھے وہ اس تو ہی لیے اپنے یا ساتھ ہم آپ ان گیا
    کیا کرنے ہو ہوتا ہوتی ہوتے رہا رہی رہے سکتے سکتا سکتی بہت جب تک کچھ میرے میرا میری تم کیسے کیوں لیکن اپنی اپنا بعد
    پھر ہوں جاتا جاتی جاتے کرتے کرتا چاہیے ہوئے ہوا گا گی گے لئے
    """,
    }.items()
}
