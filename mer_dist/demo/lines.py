"""The Chinese lines of the demo: one clause that carries the emotion among clauses that do not."""

from __future__ import annotations

import numpy as np

#: Clauses of only one emotion.
OWN = {
    "neutral": (
        "会议改到三点了",
        "文件放在桌上",
        "下一站需要换乘",
        "表格要填两份",
        "车停在楼下",
        "明天按时来就行",
        "钥匙在抽屉里",
        "数据已经发过去了",
        "地址写在信封上",
        "材料下周再交",
    ),
    "angry": (
        "你凭什么这么说",
        "马上给我出去",
        "别再骗我了",
        "你太过分了",
        "你到底想干什么",
        "我受够你了",
        "真是岂有此理",
        "少跟我来这一套",
        "你还有脸来",
        "简直气死我了",
    ),
    "happy": (
        "实在太好了",
        "我们赢了比赛",
        "我好开心啊",
        "真是太棒了",
        "今天高兴极了",
        "终于成功了",
        "哈哈真有意思",
        "我太喜欢这里了",
        "感觉好幸福啊",
        "咱们去庆祝一下",
    ),
    "sad": (
        "我真的很想她",
        "他再也不会回来了",
        "心里空落落的",
        "我忍不住哭了",
        "一切都没有了",
        "我好难过",
        "只剩我一个人",
        "眼泪停不下来",
        "我很失望",
        "再也见不到他了",
    ),
    "worried": (
        "他怎么还没到家",
        "万一出事怎么办",
        "我心里很不安",
        "会不会来不及",
        "我怕考不过",
        "医生还没有消息",
        "我一直睡不着",
        "这样太危险了",
        "我有点担心",
        "千万别出岔子",
    ),
    "surprise": (
        "天哪怎么可能",
        "我没看错吧",
        "你居然会弹琴",
        "竟然是你",
        "我真没想到",
        "吓了我一跳",
        "这也太突然了",
        "原来你们认识",
        "不会是真的吧",
        "哇这么大",
    ),
}

#: Clauses that two emotions share: these pairs cannot be told apart by them.
SHARED = {
    ("neutral", "happy"): ("我们明天去公园", "他们下周结婚", "我收到礼物了", "妈妈做好饭了", "今天是周末"),
    ("worried", "surprise"): (
        "这是怎么回事",
        "你怎么会在这里",
        "发生什么事了",
        "他刚才说了什么",
        "怎么突然停电了",
    ),
    ("angry", "sad"): ("你为什么要走", "你从来不听我说", "我们分手吧", "你把一切都毁了", "我不想再谈了"),
}

#: Clauses without emotion.
FILLERS = (
    "我跟你说",
    "昨天在公司门口",
    "小李打来电话",
    "王老师也在",
    "那天下着雨",
    "刚从外面回来",
    "手机放在桌子上",
    "他们已经走了",
    "那时是下午三点",
    "电视还开着",
    "就在那个路口",
    "隔壁的邻居",
    "你先听我讲",
    "上个星期",
    "张医生说的",
    "在火车站里",
    "我姐姐也知道",
    "大家都看见了",
    "吃完饭以后",
    "门口有两个人",
)


def line(rng: np.random.Generator, emotion: str | None, shared: bool) -> str:
    """A line of two to four fillers and at most one clause with emotion.

    Args:
        emotion: None for a line without one.
        shared: take the clause from those that ``emotion`` shares with its pair.
    """
    clauses = list(rng.choice(FILLERS, rng.integers(2, 5), replace=False))
    if emotion is not None:
        (common,) = (said for pair, said in SHARED.items() if emotion in pair)
        telling = rng.choice(common if shared else OWN[emotion])
        clauses.insert(rng.integers(len(clauses) + 1), telling)
    return "，".join(str(clause) for clause in clauses) + "。"
