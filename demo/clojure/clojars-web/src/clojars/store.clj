(ns clojars.store
  "The files of the repository, below one directory that both instances of the pair use.

  What is there is whole. A file is written under a name of its own in `.incoming`, where nobody looks, flushed to the
  disk, and then renamed into its place. Paths are vectors of names; [] is the repository itself."
  (:require [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (java.io File)
           (java.nio ByteBuffer)
           (java.nio.channels FileChannel)
           (java.nio.file CopyOption Files LinkOption OpenOption Path StandardCopyOption StandardOpenOption)
           (java.nio.file.attribute FileAttribute FileTime)
           (java.util UUID)))

(def ^:private incoming ".incoming")

(def ^:private stale-ms
  "A part that nobody has written to for so long has lost its writer: the other instance may be writing the rest."
  (* 60 60 1000))

(def ^:private listing-ms
  "How old a listing may be: a walk through many files is not made for each request."
  1000)

(defn file-name?
  "Whether the text may name a file or a directory here. Nothing that is hidden, leads elsewhere, or needs quoting."
  [text]
  (boolean (re-matches #"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}" text)))

(defn segments
  "The names in a path as clients write it, or nil when one of them is refused."
  [text]
  (let [names (remove #{"" "."} (str/split text #"/"))]
    (when (every? file-name? names)
      (vec names))))

(defn- flush-directory!
  "Make the disk remember which names are in the directory."
  [^Path directory]
  (with-open [channel (FileChannel/open directory (into-array OpenOption [StandardOpenOption/READ]))]
    (.force channel true)))

(defn- in-store
  ^Path [store path]
  (.toPath ^File (apply io/file (:root store) path)))

(defn directory?
  "Whether there is a directory at the path."
  [store path]
  (Files/isDirectory (in-store store path) (make-array LinkOption 0)))

(defn file
  "The file at the path, or nil."
  [store path]
  (let [found (.toFile (in-store store path))]
    (when (.isFile found) found)))

(defn make-directory!
  "See to it that there is a directory at the path; its parent is there. Raises an IOException where a file is."
  [store path]
  (when-not (directory? store path)
    (Files/createDirectories (in-store store path) (make-array FileAttribute 0))
    (flush-directory! (in-store store (pop path)))))

(defn open-part!
  "A part: a file that is still to come, which only `keep!` shows to others."
  [store]
  (let [path (in-store store [incoming (str (UUID/randomUUID))])]
    {:path path
     :channel (FileChannel/open path (into-array OpenOption [StandardOpenOption/CREATE_NEW StandardOpenOption/WRITE]))}))

(defn write!
  "Append the first `length` bytes of the block to the part."
  [part ^bytes block length]
  (let [buffer (ByteBuffer/wrap block 0 length)]
    (while (.hasRemaining buffer)
      (.write ^FileChannel (:channel part) buffer))))

(defn keep!
  "Show the part at the path, in place of what was there. When this returns, no loss of power undoes it.

  modified: seconds since 1970 that it is said to have been changed at, or nil for now."
  [store part path modified]
  (let [place (in-store store path)]
    (.force ^FileChannel (:channel part) true)
    (when modified
      (Files/setLastModifiedTime (:path part) (FileTime/fromMillis (* 1000 (long modified)))))
    (Files/move (:path part) place (into-array CopyOption [StandardCopyOption/ATOMIC_MOVE]))
    (flush-directory! (.getParent place))))

(defn close-part!
  "Let go of the part; what was not kept is gone."
  [part]
  (.close ^FileChannel (:channel part))
  (Files/deleteIfExists (:path part)))

(defn- walk
  "Paths of all files below the directory, as text, in order."
  [^File directory prefix]
  (mapcat (fn [^File entry]
            (let [path (str prefix (.getName entry))]
              (cond
                (not (file-name? (.getName entry))) nil
                (.isDirectory entry) (walk entry (str path "/"))
                :else [path])))
          (sort-by #(.getName ^File %) (.listFiles directory))))

(defn files
  "Paths of all files, as text, in order; up to a second old."
  [store]
  (let [now (System/currentTimeMillis)
        [taken-at found] @(:listing store)]
    (if (and taken-at (< -1 (- now (long taken-at)) listing-ms))
      found
      (second (reset! (:listing store) [now (vec (walk (:root store) ""))])))))

(defn entries
  "Names in the directory at the path, those of directories with a slash behind; in order."
  [store path]
  (sort (for [^File entry (.listFiles (.toFile (in-store store path)))
              :when (file-name? (.getName entry))]
          (str (.getName entry) (when (.isDirectory entry) "/")))))

(defn- drop-stale-parts!
  [store]
  (doseq [^File part (.listFiles (.toFile (in-store store [incoming])))]
    (when (< (.lastModified part) (- (System/currentTimeMillis) (long stale-ms)))
      (.delete part))))

(defn open
  "The store below the directory, which is made if need be."
  [directory]
  (let [store {:root (.getAbsoluteFile (io/file directory)) :listing (atom nil)}]
    (Files/createDirectories (in-store store [incoming]) (make-array FileAttribute 0))
    (drop-stale-parts! store)
    store))
