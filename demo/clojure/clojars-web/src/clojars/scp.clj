(ns clojars.scp
  "The receiving side of scp, as a program of nailgun: what `scp -O FILE HOST:` talks to.

  sshd runs nailgun's client for every login, and that hands standard input and output over to -nailMain here. The
  client sends lines that begin with a letter, and waits for one byte after each: 0, or 1 and a line of text.

      C0644 SIZE NAME     a file; SIZE bytes follow, and a 0 that says that they were whole
      D0755 0 NAME        a directory begins       E     it ends
      TSECONDS 0 ATIME 0  when the next file or directory was changed

  The 0 after a file is sent when the file is on the disk under its name, and not before."
  (:require [clojars.log :refer [say]]
            [clojars.store :as store]
            [clojure.string :as str])
  (:import (com.martiansoftware.nailgun NGContext)
           (clojure.lang ExceptionInfo)
           (java.io EOFException InputStream IOException OutputStream))
  (:gen-class :methods [^:static [nailMain [com.martiansoftware.nailgun.NGContext] void]]))

(def ^:private line-limit 4096)

(def ^:private block-size 65536)

;; --- Single words of the protocol

(defn- refusal
  "What the client is told in place of an acknowledgement; it may go on with the next file."
  [& words]
  (ex-info (str/join words) {:refused true}))

(defmacro ^:private on-disk
  "Evaluate; what the disk refuses is told to the client. Other IOExceptions are the client's own end."
  [& body]
  `(try ~@body
        (catch IOException failed# (throw (refusal "not stored: " (ex-message failed#))))))

(defn- acknowledge!
  [^OutputStream out]
  (.write out 0)
  (.flush out))

(defn- refuse!
  "Tell the client, and the log; what a client has sent may be among the words, so nothing that a terminal acts on is."
  [^OutputStream out text]
  (let [plain (str/replace text #"[^ -~]" "?")]
    (say plain)
    (.write out (.getBytes (str \u0001 "clojars: " plain "\n") "US-ASCII"))
    (.flush out)))

(defn- take-line!
  "The next line without its end, or nil where the client has ended."
  [^InputStream in]
  (let [line (StringBuilder.)]
    (loop []
      (let [one (.read in)]
        (cond
          (and (neg? one) (zero? (.length line))) nil
          (neg? one) (throw (EOFException. "the client left within a line"))
          (= one (int \newline)) (str line)
          (= (.length line) line-limit) (throw (IOException. "a line is too long"))
          :else (do (.append line (char one)) (recur)))))))

(defn- take-content!
  "Pass `size` bytes on to the part; what the disk refused, as a refusal, or nil. All are taken in either way, so that
  what comes after them is found."
  [^InputStream in size part]
  (let [block (byte-array block-size)]
    (loop [left (long size), trouble nil]
      (if (zero? left)
        trouble
        (let [came (.read in block 0 (int (min left block-size)))]
          (when (neg? came) (throw (EOFException. (str left " bytes are missing"))))
          (recur (- left came)
                 (or trouble
                     (try (on-disk (store/write! part block came)) nil
                          (catch ExceptionInfo failed failed)))))))))

(defn- take-verdict!
  "After the content the client says whether it could read all of it."
  [^InputStream in]
  (let [verdict (.read in)]
    (when (neg? verdict) (throw (EOFException. "the client left before it said that the file was whole")))
    (when-not (zero? verdict)
      (throw (refusal "not stored: " (take-line! in))))))

;; --- What is said line by line
;;
;; A session is a map. :path, where files go; :outer, the paths outside of it; :as, whether the very first name is
;; replaced by that of the target; :modified, from the T line before; :refused, whether anything was.

(defn- place
  "The path for a name in the session."
  [{:keys [path as]} text]
  (when-not (store/file-name? text)
    (throw (refusal "cannot store " (pr-str text) ": names are of letters, digits, . _ + - and begin with none of . + -")))
  (if as path (conj path text)))

(defn- parsed
  "Size and name of a C or D line."
  [line]
  (if-let [[_ size text] (re-matches #"[CD][0-7]{4} ([0-9]{1,15}) (.*)" line)]
    [(parse-long size) text]
    (throw (refusal "not understood: " (pr-str line)))))

(defn- receive-file!
  [{:keys [store in out modified] :as session} line]
  (let [[size text] (parsed line)
        path (place session text)]
    (when (store/directory? store path)
      (throw (refusal "cannot store " (str/join "/" path) ": it is a directory")))
    (when-not (store/directory? store (pop path))
      (throw (refusal "cannot store " (str/join "/" path) ": there is no directory " (str/join "/" (pop path)))))
    (let [part (on-disk (store/open-part! store))]
      (try
        (acknowledge! out)
        (let [trouble (take-content! in size part)]
          (take-verdict! in)
          (when trouble (throw trouble)))
        (on-disk (store/keep! store part path modified))
        (finally (store/close-part! part))))
    (say "stored" (str/join "/" path) size)
    session))

(defn- begin-directory!
  [{:keys [store path] :as session} line]
  (let [[_ text] (parsed line)
        inside (place session text)]
    (on-disk (store/make-directory! store inside))
    (-> session (assoc :path inside :as false) (update :outer conj path))))

(defn- end-directory
  [{:keys [outer] :as session}]
  (when (empty? outer)
    (throw (refusal "not understood: no directory has begun")))
  (assoc session :path (peek outer) :outer (pop outer)))

(defn- begin-times
  [session line]
  (if-let [[_ seconds] (re-matches #"T([0-9]{1,11}) [0-9]+ [0-9]+ [0-9]+" line)]
    (assoc session :modified (parse-long seconds))
    (throw (refusal "not understood: " (pr-str line)))))

(defn- step!
  "The session after a line that it has acted on. Raises what is to be told to the client."
  [session line]
  (case (first line)
    \T (begin-times session line)
    \C (dissoc (receive-file! session line) :modified)
    \D (dissoc (begin-directory! session line) :modified)
    \E (end-directory session)
    (throw (refusal "not understood: " (pr-str line)))))

(defn- refused
  "The words for the client, or nil when it is something else that has failed."
  [failed]
  (when (:refused (ex-data failed))
    (ex-message failed)))

(defn- act!
  "The session after a line, which has been answered."
  [{:keys [out] :as session} line]
  (try
    (let [after (step! session line)]
      (acknowledge! out)
      after)
    (catch ExceptionInfo failed
      (refuse! out (or (refused failed) (throw failed)))
      (assoc session :refused true :modified nil))))

(defn receive!
  "Speak the receiving side until the client's end.

  target: path that files go to; inside: whether it must be a directory, as where several come.
  True when all that was sent has been stored. Raises an IOException when the client left in the middle: what it was
  not told to be stored is not there."
  [store in out {:keys [target inside]}]
  (when (and inside (not (store/directory? store target)))
    (throw (refusal "cannot store anything: there is no directory " (str/join "/" target))))
  (acknowledge! out)
  (loop [session {:store store, :in in, :out out, :path target, :outer [], :as (not (store/directory? store target))}]
    (let [line (take-line! in)]
      (cond
        (nil? line) (not (:refused session))
        ;; the client could not read something: it says so itself, and awaits no answer
        (#{\u0001 \u0002} (first line)) (recur (assoc session :refused true))
        :else (recur (act! session line))))))

;; --- The program

(defn parse
  "What the words after `scp` ask for, as sshd hands them down: the client's own, without a shell between."
  [words]
  (let [words (if (= "scp" (first words)) (rest words) words)
        [options [target & more]] (split-with #(re-matches #"-[a-z]+|--" %) words)
        letters (set (mapcat rest options))]
    (when (or (not (letters \t)) more)
      (throw (refusal "cannot do " (pr-str (str/join " " words)) ": send files with scp -O FILE... HOST:[DIRECTORY]")))
    {:target (or (store/segments (or target "."))
                 (throw (refusal "cannot store anything in " (pr-str target) ": it leads out of the repository")))
     :inside (boolean (letters \d))}))

(defonce ^:private receiving (atom nil))

(defonce ^:private sessions (atom 0))

(defn serve!
  "From now on uploads go to the store."
  [store]
  (reset! receiving store))

(defn open-sessions
  "How many clients are served at this moment."
  []
  @sessions)

(defn- words-of
  "The client's words: arguments of `ng`, else what the ssh client has asked for."
  [^NGContext context]
  (or (seq (.getArgs context))
      (some-> (.getProperty (.getEnv context) "SSH_ORIGINAL_COMMAND") (str/split #"\s+"))
      ["-t"]))

(defn- run!!
  "The exit status for the client."
  [^NGContext context]
  (try
    (if (receive! @receiving (.in context) (.out context) (parse (words-of context))) 0 1)
    (catch Exception failed
      (if-let [text (refused failed)]
        (refuse! (.out context) text)
        (say "an upload was cut:" failed))
      1)))

(defn -nailMain
  "What nailgun calls in a thread of its own for each client."
  [^NGContext context]
  (swap! sessions inc)
  (try
    (.exit context (run!! context))
    (finally (swap! sessions dec))))
