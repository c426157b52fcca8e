"""The system prompt that asks for an answer in a language, written in that language, or the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from common.languages import display_name, native_name

DEFAULT = "default"  # the key of one's own instruction for all languages that have none of their own
PLACES = ("{language}", "{native}")  # where it names the language: in English, and in itself

NONE_OWN: Mapping[str, str] = MappingProxyType({})

# By language code: "You are a helpful assistant. Always answer in <the language>."
INSTRUCTIONS: dict[str, str] = {
    "af": "Jy is 'n nuttige assistent. Antwoord altyd in Afrikaans.",
    "am": "አንተ ጠቃሚ ረዳት ነህ። ሁልጊዜ በአማርኛ መልስ።",
    "ar": "أنت مساعد مفيد. أجب دائمًا باللغة العربية.",
    "az": "Sən faydalı bir köməkçisən. Həmişə Azərbaycan dilində cavab ver.",
    "be": "Ты карысны памочнік. Заўсёды адказвай на беларускай мове.",
    "bg": "Ти си полезен асистент. Винаги отговаряй на български език.",
    "bn": "আপনি একজন সহায়ক সহকারী। সর্বদা বাংলায় উত্তর দিন।",
    "bs": "Ti si koristan pomoćnik. Uvijek odgovaraj na bosanskom jeziku.",
    "ca": "Ets un assistent útil. Respon sempre en català.",
    "cs": "Jsi užitečný asistent. Vždy odpovídej česky.",
    "cy": "Rydych chi'n gynorthwyydd defnyddiol. Atebwch yn Gymraeg bob amser.",
    "da": "Du er en hjælpsom assistent. Svar altid på dansk.",
    "de": "Du bist ein hilfreicher Assistent. Antworte immer auf Deutsch.",
    "el": "Είσαι ένας χρήσιμος βοηθός. Απάντα πάντα στα ελληνικά.",
    "en": "You are a helpful assistant. Always answer in English.",
    "eo": "Vi estas helpema asistanto. Ĉiam respondu en Esperanto.",
    "es": "Eres un asistente útil. Responde siempre en español.",
    "et": "Sa oled abivalmis assistent. Vasta alati eesti keeles.",
    "eu": "Laguntzaile baliagarria zara. Erantzun beti euskaraz.",
    "fa": "شما یک دستیار مفید هستید. همیشه به زبان فارسی پاسخ دهید.",
    "fi": "Olet avulias avustaja. Vastaa aina suomeksi.",
    "fr": "Tu es un assistant utile. Réponds toujours en français.",
    "ga": "Is cúntóir cabhrach thú. Freagair i nGaeilge i gcónaí.",
    "gl": "Es un asistente útil. Responde sempre en galego.",
    "gu": "તમે એક ઉપયોગી સહાયક છો. હંમેશા ગુજરાતીમાં જવાબ આપો.",
    "he": "אתה עוזר מועיל. ענה תמיד בעברית.",
    "hi": "आप एक सहायक असिस्टेंट हैं। हमेशा हिन्दी में उत्तर दें।",
    "hr": "Ti si koristan pomoćnik. Uvijek odgovaraj na hrvatskom jeziku.",
    "hu": "Segítőkész asszisztens vagy. Mindig magyarul válaszolj.",
    "hy": "Դու օգտակար օգնական ես։ Միշտ պատասխանիր հայերեն։",
    "id": "Anda adalah asisten yang membantu. Selalu jawab dalam bahasa Indonesia.",
    "is": "Þú ert hjálpsamur aðstoðarmaður. Svaraðu alltaf á íslensku.",
    "it": "Sei un assistente utile. Rispondi sempre in italiano.",
    "ja": "あなたは役に立つアシスタントです。常に日本語で答えてください。",
    "ka": "თქვენ ხართ სასარგებლო ასისტენტი. ყოველთვის უპასუხეთ ქართულად.",
    "kk": "Сен пайдалы көмекшісің. Әрқашан қазақ тілінде жауап бер.",
    "km": "អ្នកគឺជាជំនួយការដែលមានប្រយោជន៍។ សូមឆ្លើយជាភាសាខ្មែរជានិច្ច។",
    "kn": "ನೀವು ಉಪಯುಕ್ತ ಸಹಾಯಕರು. ಯಾವಾಗಲೂ ಕನ್ನಡದಲ್ಲಿ ಉತ್ತರಿಸಿ.",
    "ko": "당신은 유용한 어시스턴트입니다. 항상 한국어로 답변하세요.",
    "lo": "ເຈົ້າເປັນຜູ້ຊ່ວຍທີ່ເປັນປະໂຫຍດ. ຕອບເປັນພາສາລາວສະເໝີ.",
    "lt": "Tu esi naudingas asistentas. Visada atsakyk lietuvių kalba.",
    "lv": "Tu esi noderīgs palīgs. Vienmēr atbildi latviešu valodā.",
    "mk": "Ти си корисен асистент. Секогаш одговарај на македонски јазик.",
    "ml": "നിങ്ങൾ ഒരു സഹായിയാണ്. എപ്പോഴും മലയാളത്തിൽ ഉത്തരം നൽകുക.",
    "mn": "Та тустай туслах юм. Үргэлж монгол хэлээр хариулаарай.",
    "mr": "तुम्ही एक उपयुक्त सहाय्यक आहात. नेहमी मराठीत उत्तर द्या.",
    "ms": "Anda ialah pembantu yang berguna. Sentiasa jawab dalam bahasa Melayu.",
    "my": "သင်သည် အထောက်အကူပြု လက်ထောက်တစ်ဦးဖြစ်သည်။ အမြဲတမ်း မြန်မာဘာသာဖြင့် ဖြေပါ။",
    "ne": "तपाईं एक उपयोगी सहायक हुनुहुन्छ। सधैं नेपालीमा जवाफ दिनुहोस्।",
    "nl": "Je bent een behulpzame assistent. Antwoord altijd in het Nederlands.",
    "nn": "Du er ein hjelpsam assistent. Svar alltid på nynorsk.",
    "no": "Du er en hjelpsom assistent. Svar alltid på norsk.",
    "pa": "ਤੁਸੀਂ ਇੱਕ ਮਦਦਗਾਰ ਸਹਾਇਕ ਹੋ। ਹਮੇਸ਼ਾ ਪੰਜਾਬੀ ਵਿੱਚ ਜਵਾਬ ਦਿਓ।",
    "pl": "Jesteś pomocnym asystentem. Zawsze odpowiadaj po polsku.",
    "pt": "Você é um assistente útil. Responda sempre em português.",
    "ro": "Ești un asistent util. Răspunde întotdeauna în limba română.",
    "ru": "Ты полезный ассистент. Всегда отвечай на русском языке.",
    "si": "ඔබ උපකාරක සහායකයෙකි. සැමවිටම සිංහලෙන් පිළිතුරු දෙන්න.",
    "sk": "Si užitočný asistent. Vždy odpovedaj po slovensky.",
    "sl": "Si koristen pomočnik. Vedno odgovarjaj v slovenščini.",
    "sq": "Ti je një asistent i dobishëm. Përgjigju gjithmonë në gjuhën shqipe.",
    "sr": "Ти си користан помоћник. Увек одговарај на српском језику.",
    "sv": "Du är en hjälpsam assistent. Svara alltid på svenska.",
    "sw": "Wewe ni msaidizi mwenye manufaa. Jibu maswali yote kwa lugha ya Kiswahili.",
    "ta": "நீங்கள் ஒரு பயனுள்ள உதவியாளர். எப்போதும் தமிழில் பதிலளிக்கவும்.",
    "te": "మీరు సహాయకరమైన సహాయకులు. ఎల్లప్పుడూ తెలుగులో సమాధానం ఇవ్వండి.",
    "th": "คุณเป็นผู้ช่วยที่เป็นประโยชน์ ตอบเป็นภาษาไทยเสมอ",
    "tl": "Ikaw ay isang kapaki-pakinabang na katulong. Palaging sumagot sa wikang Tagalog.",
    "tr": "Sen yardımsever bir asistansın. Her zaman Türkçe yanıt ver.",
    "uk": "Ти корисний помічник. Завжди відповідай українською мовою.",
    "ur": "آپ ایک مددگار معاون ہیں۔ ہمیشہ اردو میں جواب دیں۔",
    "uz": "Siz foydali yordamchisiz. Har doim oʻzbek tilida javob bering.",
    "vi": "Bạn là một trợ lý hữu ích. Hãy luôn trả lời bằng tiếng Việt.",
    "zh": "你是一个乐于助人的助手。请始终用中文回答。",
}


def names_the_language(text: str) -> bool:
    """Whether an instruction of one's own for all languages says which one is meant."""
    return any(place in text for place in PLACES)


def instruction(language: str, own: Mapping[str, str] = NONE_OWN) -> str:
    """The sentence that asks for an answer in a language, which is given by its code.

    Where nobody has written one in the language itself, it is an English one with the language's own name.

    Args:
        own: ``model.instructions``, which take the place of those of this file. Each may have the places ``PLACES``.
    """
    english, native = display_name(language), native_name(language)
    for given in (language, DEFAULT):
        if given in own:
            return own[given].replace("{language}", english).replace("{native}", native)
    if language in INSTRUCTIONS:
        return INSTRUCTIONS[language]
    name = english if native == english else f"{english} ({native})"
    return f"You are a helpful assistant. Always answer in {name}, and in no other language."
