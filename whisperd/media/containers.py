"""What the first and the last bytes of an input say about it: which library reads it, and whether it was cut.

Pure. A name or a suffix never decides what an input is; only audio without any header, which no byte can
identify, is taken at its client's word, and only for the few codecs listed here.
"""

from __future__ import annotations

import struct

# What FFmpeg may try, as its options want it. Left out on purpose: everything that opens other files or
# addresses (playlists, concat scripts, DASH, SDP, image sequences), devices, headerless formats, and the long
# tail of game formats.
FFMPEG_DEMUXERS = (
    "wav,w64,aiff,au,caf,voc,flac,ogg,mp3,aac,loas,ac3,eac3,dts,mov,matroska,asf,avi,"
    "flv,mpegts,mpeg,amr,ape,tta,wv,tak,mpc,mpc8"
)

# What FFmpeg may decode with: audio only, so that no video decoder ever runs, not even to look at a stream.
FFMPEG_DECODERS = (
    "aac,aac_latm,ac3,eac3,alac,als,amrnb,amrwb,libopencore_amrnb,libopencore_amrwb,ape,cook,"
    "dca,flac,g722,g726,g726le,gsm,gsm_ms,ilbc,mlp,mp1,mp1float,mp2,mp2float,mp3,mp3float,"
    "mp3adu,mp3adufloat,mp3on4,mp3on4float,mpc7,mpc8,nellymoser,opus,libopus,qcelp,qdm2,qdmc,"
    "speex,libspeex,tak,truehd,truespeech,tta,vorbis,wavpack,wmalossless,wmapro,wmav1,wmav2,"
    "wmavoice,adpcm_adx,adpcm_g722,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,adpcm_swf,adpcm_yamaha,"
    "pcm_alaw,pcm_bluray,pcm_dvd,pcm_f16le,pcm_f24le,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,"
    "pcm_mulaw,pcm_s16be,pcm_s16be_planar,pcm_s16le,pcm_s16le_planar,pcm_s24be,pcm_s24le,"
    "pcm_s24le_planar,pcm_s32be,pcm_s32le,pcm_s32le_planar,pcm_s8,pcm_s8_planar,pcm_u16be,"
    "pcm_u16le,pcm_u24be,pcm_u24le,pcm_u32be,pcm_u32le,pcm_u8"
)

# Headerless audio by what the client calls it; the values are FFmpeg's names.
HEADERLESS = {"g722": "g722", "mulaw": "mulaw", "alaw": "alaw"}
_HEADERLESS_SUFFIXES = {
    ".g722": "g722",
    ".722": "g722",
    ".ulaw": "mulaw",
    ".mulaw": "mulaw",
    ".ul": "mulaw",
    ".pcmu": "mulaw",
    ".alaw": "alaw",
    ".al": "alaw",
    ".pcma": "alaw",
}

_STARTS = {
    b"fLaC": "flac",
    b"OggS": "ogg",
    b".snd": "au",
    b"caff": "caf",
    b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00": "w64",
    b"\x1a\x45\xdf\xa3": "matroska or webm",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "wma",
    b"ID3": "mp3",
}
_OGG_LAST_PAGE = 0x04
_UNKNOWN_SIZES = (0, 0x7FFFFFFF)  # a writer that could not seek back leaves these, or more than the latter


def headerless_codec(format: str | None, suffix: str) -> str | None:
    """The codec for audio in which nothing was recognised; None: there is none."""
    return HEADERLESS.get(format or "") or _HEADERLESS_SUFFIXES.get(suffix.lower())


def signature(head: bytes) -> str | None:
    """The container that the input unmistakably begins like; None where no sign is sure, as in MP3."""
    form = head[8:12]
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and form == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and form in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] == b"ftyp":
        return "mp4"
    return next((name for start, name in _STARTS.items() if head.startswith(start)), None)


def libsndfile_reads(head: bytes) -> bool:
    """Whether the input begins like a container that libsndfile is trusted with.

    Not MP3: FFmpeg gets more out of damaged ones, and libmpg123 prints a line for each bad frame.
    """
    return signature(head) in ("wav", "aiff", "flac", "ogg", "au", "caf", "w64")


def announces_length(demuxer: str, head: bytes) -> bool:
    """Whether a length that FFmpeg reports was written by the encoder, and not guessed from the bit rate."""
    if demuxer == "mp3":
        start = 0
        if head[:3] == b"ID3" and len(head) >= 10:
            a, b, c, d = (byte & 0x7F for byte in head[6:10])
            start = 10 + (a << 21 | b << 14 | c << 7 | d)
        frame = head[start : start + 512]
        return b"Xing" in frame or b"Info" in frame
    return demuxer in ("wav", "w64", "aiff", "caf", "flac", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf")


def missing_end(head: bytes, tail: bytes, size_bytes: int) -> str | None:
    """How the input shows that its end is missing, for containers whose readers do not tell."""
    if head[:4] == b"RIFF" and len(head) >= 8:
        announced = struct.unpack_from("<I", head, 4)[0] + 8
        if size_bytes < announced and announced - 8 not in _UNKNOWN_SIZES and announced < _UNKNOWN_SIZES[1]:
            return f"the header announces {announced} bytes, {size_bytes} came"
    if head[:4] == b"OggS":
        page = tail.rfind(b"OggS")
        if 0 <= page < len(tail) - 5 and not tail[page + 5] & _OGG_LAST_PAGE:
            return "the last page is missing"
    return None
